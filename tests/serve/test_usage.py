from ddcat_serve.observe.usage import Batch, Usage


def test_all_stages_have_one_count_at_any_moment() -> None:
    usage = Usage()
    usage.count_batch(Batch(requests=2, images=3, pixels=9, seconds=0.25, failed=0))  # not yet answered
    stages = usage.statistics("small", "1")["inference_stats"]
    assert {stage["count"] for stage in stages.values()} == {0}
    usage.count_request(1, 0.5, answered=True)
    usage.count_request(2, 0.75, answered=True)
    usage.count_request(4, 9.0, answered=False)
    found = usage.statistics("small", "1")
    stages = found["inference_stats"]
    computed = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert {stages[stage]["count"] for stage in computed} == {2}
    assert (stages["compute_infer"]["ns"], stages["queue"]["ns"]) == (500_000_000, 750_000_000)
    assert stages["fail"] == {"count": 1, "ns": 9_000_000_000}
    assert (found["inference_count"], found["execution_count"]) == (3, 1)
    assert [(batch["batch_size"], batch["compute_infer"]) for batch in found["batch_stats"]] == [
        (3, {"count": 1, "ns": 250_000_000})
    ]
