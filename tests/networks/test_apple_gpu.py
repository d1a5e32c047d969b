"""What Apple's GPU asks of a network, as far as it can be seen elsewhere: no float64, and no channels last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from boltzformer_monai.networks.layout import set_layout
from tests.networks.cases import small_network


class _NoDoubles(TorchDispatchMode):
    """Metal has no float64: fail where an operation makes one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.dtype == torch.float64:
                raise TypeError(f"{function} made float64")
        return result


@pytest.mark.parametrize("fast", [True, False])
def test_training_and_inference_need_no_float64(fast: bool) -> None:
    network = small_network(presence=True, fast=fast)
    tokens = torch.tensor([[[49406, 13213, 49407]]] * 2)
    with _NoDoubles():
        network.train()(torch.rand(2, 1, 64, 64), tokens).square().mean().backward()
        with torch.inference_mode():
            network.eval()(torch.rand(2, 1, 64, 64), tokens)
    with pytest.raises(TypeError, match="made float64"), _NoDoubles():
        torch.ones(2).double()


def test_weights_stay_contiguous_there() -> None:
    class Weight:
        device = torch.device("mps")

    class Network:
        asked = None

        def parameters(self) -> list[Weight]:
            return [Weight()]

        def to(self, *, memory_format: torch.memory_format) -> Network:
            self.asked = memory_format
            return self

    for trains in (True, False):
        assert set_layout(Network(), trains=trains).asked is torch.contiguous_format  # type: ignore[type-var]
