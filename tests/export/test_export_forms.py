"""What takes the place of operations that export for one size alone computes the same."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddcat_export.errors import ExportError
from ddcat_export.export_forms import ExportForms


@pytest.mark.parametrize("output", [1, 3, (2, 5), (1, 1), (None, 4), 7])
@pytest.mark.parametrize("size", [(7, 11), (12, 12), (33, 50)])
def test_adaptive_average_pooling(output: Any, size: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, *size)
    expected = F.adaptive_avg_pool2d(maps, output)
    with ExportForms():
        found = F.adaptive_avg_pool2d(maps, output)
        of_a_module = nn.AdaptiveAvgPool2d(output)(maps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of_a_module, expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (3, 8, 6)])
def test_group_norm(affine: bool, shape: tuple[int, ...]) -> None:
    maps, norm = torch.rand(shape), nn.GroupNorm(4, 8, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    expected = norm(maps)
    with ExportForms():
        torch.testing.assert_close(norm(maps), expected)


def test_adaptive_max_pooling_to_one_bin_or_of_one_size() -> None:
    maps = torch.rand(2, 3, 9, 10)
    for output in (1, (3, 2)):
        expected = F.adaptive_max_pool2d(maps, output)
        with ExportForms():
            assert torch.equal(F.adaptive_max_pool2d(maps, output), expected)


def test_adaptive_max_pooling_for_any_size_is_refused_by_name() -> None:
    class Pooled(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return F.adaptive_max_pool2d(maps, 3)

    free = {2: torch.export.Dim("height", min=9), 3: torch.export.Dim("width", min=9)}
    with pytest.raises(ExportError, match="adaptive max pooling to 3 x 3 cannot be exported for all sizes"), ExportForms():
        torch.export.export(Pooled(), (torch.rand(2, 3, 20, 30),), dynamic_shapes=(free,), strict=False)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bqc,bchw->bqhw", ((2, 3, 4), (2, 4, 5, 6))),
        ("lbqc, bchw -> lbqhw", ((2, 3, 4, 5), (3, 5, 6, 7))),
        ("ij,jk->ki", ((2, 3), (3, 4))),
        ("bi,bi->b", ((2, 3), (2, 3))),
        ("i,j->ij", ((2,), (3,))),
        ("bhwc,hkc->bhwk", ((2, 3, 4, 5), (3, 6, 5))),
        ("bij,jk->bk", ((2, 3, 4), (4, 5))),  # sums over one factor alone: as torch does it
        ("...ij,jk->...ik", ((2, 3, 4), (4, 5))),
        ("ii->i", ((3, 3),)),
    ],
)
def test_sums_of_products(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    operands = [torch.rand(shape) for shape in shapes]
    expected = torch.einsum(equation, *operands)
    with ExportForms():
        torch.testing.assert_close(torch.einsum(equation, *operands), expected)
