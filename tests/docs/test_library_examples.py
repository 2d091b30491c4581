"""The examples of docs/library.md, unchanged, on two ranks of torchrun, against one process that
does not use ptycho_dist."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_dist import Bundle, Calibration, derive_intensity_scale, load_bundle
from tests.docs.blocks import ROOT, blocks

AUDIT = """
import os, sys

def note(event, arguments):  # os.rename stands for os.replace too
    if event == "os.rename" and str(arguments[1]).endswith(".zip"):
        with open("written.log", "a") as log:
            log.write(f"{os.environ['RANK']} {arguments[1]}\\n")

if "RANK" in os.environ:
    sys.addaudithook(note)
"""
"""Python's `sitecustomize.py`, which notes which rank writes which bundle."""


@dataclass(frozen=True)
class Example:
    """A program of the page, with its input and its results."""

    source: str
    bundle: Bundle
    written: str
    output: str
    counts: np.ndarray
    classes: dict[str, Any]

    @property
    def x_norm(self) -> np.ndarray:
        """All patterns, normalised as in the programs."""
        return (self.bundle.calibration.rms_factor * np.sqrt(self.counts)).astype(np.float32)


def source_of(name: str) -> str:
    sources = [
        block.text
        for block in blocks("docs/library.md")
        if block.language == "python" and ('save_bundle("' + name) in block.text
    ]
    assert len(sources) == 1
    return sources[0]


def definitions(source: str) -> dict[str, Any]:
    """Return a program's imports, functions and classes, without running the rest."""
    tree = ast.parse(source)
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    tree.body = [node for node in tree.body if isinstance(node, kept)]
    namespace: dict[str, Any] = {}
    exec(compile(tree, "docs/library.md", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module", params=["ddp", "lightning"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def example(name: str, tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder, source = tmp_path_factory.mktemp(name), source_of(name)
    (folder / f"train_{name}.py").write_text(source)
    (folder / "sitecustomize.py").write_text(AUDIT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            f"train_{name}.py",
        ],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,  # a busy machine
        check=False,
    )
    assert done.returncode == 0, done.stdout
    known = definitions(source)
    return Example(
        source=source,
        bundle=load_bundle(folder / f"{name}.zip"),
        written=(folder / "written.log").read_text(),
        output=done.stdout,
        counts=known["measure"]()[0],
        classes=known,
    )


def own_names(tree: ast.Module) -> set[str]:
    """Return the names that a program imports from ptycho_dist, and those that it assigns from
    calls of them: variables, or attributes of `self`."""
    imported = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "ptycho_dist"
        for alias in node.names
    }
    made = {
        ast.unparse(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) in imported
    }
    return imported | made


def simple_statements(node: ast.AST) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and not hasattr(child, "body"):
            yield child
        else:
            yield from simple_statements(child)


@pytest.mark.parametrize("example_name", ["ddp", "lightning"])
def test_ptycho_dist_takes_about_a_dozen_statements(example_name: str) -> None:
    """Every statement that names something of ptycho_dist, the import included."""
    tree = ast.parse(source_of(example_name))
    names = own_names(tree)
    assert {"derive_intensity_scale", "ScaledPoissonLoss", "save_bundle", "load_bundle"} <= names
    count = 1  # the import
    for statement in simple_statements(tree):
        said = {
            ast.unparse(node)
            for node in ast.walk(statement)
            if isinstance(node, ast.Name | ast.Attribute)
        }
        count += bool(said & names)
    assert 5 < count < 15


@pytest.mark.slow
def test_scale_is_that_of_the_union_and_has_the_same_bits_everywhere(example: Example) -> None:
    nphotons = example.counts.sum(axis=(1, 2)).mean()
    energies = (example.x_norm.astype(np.float64) ** 2).sum(axis=(1, 2))
    # NumPy adds 51 numbers in float64, the package exactly.
    assert example.bundle.intensity_scale == pytest.approx(
        np.sqrt(nphotons / energies.mean()), rel=1e-14
    )
    # one process, to the last bit
    scale = derive_intensity_scale(example.x_norm, nphotons)
    calibration = example.bundle.calibration
    assert calibration == Calibration.of(
        scale,
        nphotons_source="measured",
        rms_factor=calibration.rms_factor,
        pattern_size=example.counts.shape[-1],
    )
    assert calibration.num_patterns == len(example.counts)
    assert f"s = {example.bundle.intensity_scale!r}; {nphotons:.1f} photons" in example.output


def poisson_likelihood(rate: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of rate - counts log(rate); below 1e-3 counts the logarithm continues along
    its tangent, as the loss documents."""
    lit = rate.clamp_min(1e-3)
    return (rate - counts * (lit.log() + (rate - lit) / lit)).mean()


@pytest.mark.slow
def test_weights_are_those_of_one_process_on_the_union(name: str, example: Example) -> None:
    """Trained again without ranks and without ptycho_dist's loss: the Poisson likelihood in float64
    of rate s^2 g^2 I and counts."""
    torch.manual_seed(0)
    probe = torch.from_numpy(example.bundle.probe[0].real.copy())
    log_gain = torch.zeros((), requires_grad=name == "lightning")
    if name == "ddp":
        network = example.classes["Network"](probe, width=8)
        trained, batches = network, [np.arange(51)] * 20
    else:
        network = example.classes["Module"](example.x_norm, probe.numpy(), 1.0, 1.0, width=32)
        trained, batches = (
            network.layers,
            [np.arange(start, min(start + 16, 51)) for start in (0, 16, 32, 48)] * 5,
        )
    begun = {key: value.clone() for key, value in trained.state_dict().items()}
    parameters = [
        parameter for parameter in [*network.parameters(), log_gain] if parameter.requires_grad
    ]
    # SGD, unlike Adam, would show a gradient that is wrong by a factor, such as the number of
    # ranks.
    optimizer = (
        torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)
        if name == "ddp"
        else torch.optim.Adam(parameters, lr=1e-3)
    )
    counts = torch.from_numpy(example.counts).double()
    for batch in batches:
        optimizer.zero_grad()
        rate = (example.bundle.intensity_scale * log_gain.exp()).square() * network(
            torch.from_numpy(example.x_norm[batch])
        ).double()
        poisson_likelihood(rate, counts[batch]).backward()
        optimizer.step()
    # Weights move by about 2e-2 in all, in float32; where a gradient is near zero, Adam makes more
    # of its rounding.
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(example.bundle.weights[key], value, rtol=0, atol=2e-5)
    assert (
        max((value - begun[key]).abs().max() for key, value in trained.state_dict().items()) > 1e-2
    )
    assert example.bundle.gain == pytest.approx(float(log_gain.detach().exp()), rel=2e-5)
    assert (example.bundle.gain == 1) == (name == "ddp")


@pytest.mark.slow
def test_rank_zero_alone_writes(name: str, example: Example) -> None:
    assert [line.split()[0] for line in example.written.splitlines()] == ["0"]
    assert example.written.rstrip().endswith(f"{name}.zip")


@pytest.mark.slow
def test_bundle_tells_how_to_build_the_network_again(name: str, example: Example) -> None:
    expected = {"ddp": {"network": "two convolutions", "width": 8}, "lightning": {"width": 32}}
    assert example.bundle.hyperparameters == expected[name]
    assert example.bundle.config is None
    assert "photons per pattern measured" in example.output
