"""What the report of a gate says."""

from ddcat_bench.gate.report import gate_markdown
from ddcat_bench.gate.results import ClassEntry
from tests.bench.gates import made_gate


def test_classes_that_are_nowhere_are_named_below_the_table() -> None:
    made = made_gate()
    assert "Neither in these images" not in gate_markdown(made)
    classes = (*made.classes, ClassEntry(name="boat", share=0), ClassEntry(name="bottle", share=0))
    nowhere, labelled = (None, None), (0.0, None)  # one of the two models labels pixels as boats
    threats = tuple(row.model_copy(update={"class_iou": (*row.class_iou, labelled, nowhere)}) for row in made.threats)
    report = gate_markdown(made.model_copy(update={"classes": classes, "threats": threats}))
    assert "| boat (rare) | 0.00% | - |" in report
    assert "| bottle" not in report
    assert "Neither in these images nor labelled by either model: bottle." in report
