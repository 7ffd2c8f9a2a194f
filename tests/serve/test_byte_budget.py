import asyncio

from ddcat_serve.http.byte_budget import ByteBudget


def test_bytes_are_given_in_turn_and_those_who_leave_hold_nobody_up() -> None:
    async def live() -> None:
        budget, order = ByteBudget(10), list[str]()

        async def want(name: str, size: int) -> None:
            await budget.take(size)
            order.append(name)

        await want("first", 8)
        large, small = asyncio.create_task(want("large", 9)), asyncio.create_task(want("small", 2))
        await asyncio.sleep(0)
        assert (order, budget.try_take(1)) == (["first"], False)  # small fits, but it is not its turn
        large.cancel()
        await asyncio.sleep(0)
        await small
        budget.give_back(8)
        budget.give_back(2)
        assert order == ["first", "small"]
        assert budget.try_take(10)
        granted = asyncio.create_task(budget.take(10))
        await asyncio.sleep(0)
        budget.give_back(10)
        granted.cancel()  # between its turn and its waking
        await asyncio.sleep(0)
        assert budget.try_take(10)

    asyncio.run(live())
