import asyncio

from ddcat_serve.http.byte_budget import Room


def test_bytes_are_given_in_turn_and_those_who_leave_hold_nobody_up() -> None:
    async def live() -> None:
        room, order = Room(10), list[str]()

        async def want(name: str, size: int) -> None:
            await room.take(size)
            order.append(name)

        await want("first", 8)
        large, small = asyncio.create_task(want("large", 9)), asyncio.create_task(want("small", 2))
        await asyncio.sleep(0)
        assert (order, room.take_now(1)) == (["first"], False)  # small fits, but it is not its turn
        large.cancel()
        await asyncio.sleep(0)
        await small
        room.give(8)
        room.give(2)
        assert order == ["first", "small"]
        assert room.take_now(10)
        granted = asyncio.create_task(room.take(10))
        await asyncio.sleep(0)
        room.give(10)
        granted.cancel()  # between its turn and its waking
        await asyncio.sleep(0)
        assert room.take_now(10)

    asyncio.run(live())
