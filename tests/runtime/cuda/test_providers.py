"""CUDA through either library: the same laws, on stand-ins of the libraries, and on a real GPU where there is one."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from simulated_cuda import SimulatedCuda
from simulated_providers import Bindings, Pycuda

from posekit.runtime import cuda
from posekit.runtime.cuda import PROVIDERS, Driver, Provider, cuda_python, open_driver
from posekit.runtime.cuda.cuda_python import CudaPythonDriver
from posekit.runtime.cuda.pycuda import PycudaDriver
from posekit.runtime.errors import BackendError

NO_DRIVER = not Path("/dev/nvidiactl").exists()
without_driver = pytest.mark.skipif(not NO_DRIVER, reason="this machine has an NVIDIA driver")


def with_bindings(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(cuda_python, "_check_libcuda", lambda: None)
    monkeypatch.setattr(cuda_python, "_imported", Bindings)
    return CudaPythonDriver()


def with_pycuda(monkeypatch: pytest.MonkeyPatch) -> Driver:
    package, driver = ModuleType("pycuda"), Pycuda()
    package.VERSION, package.driver = (2026, 1), driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return PycudaDriver()


def simulated(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return SimulatedCuda()


def real(name: str) -> Callable[[pytest.MonkeyPatch], Driver]:
    def opened(monkeypatch: pytest.MonkeyPatch) -> Driver:
        if why_not := PROVIDERS[name].missing():
            pytest.skip(why_not)
        return PROVIDERS[name].open()

    return opened


EVERY = [
    pytest.param(simulated, id="simulated"),
    pytest.param(with_bindings, id="cuda-bindings stand-in"),
    pytest.param(with_pycuda, id="pycuda stand-in"),
    *(pytest.param(real(name), id=name, marks=pytest.mark.gpu) for name in PROVIDERS),
]


@pytest.mark.parametrize("opened", EVERY)
def test_what_goes_to_the_device_comes_back(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[[pytest.MonkeyPatch], Driver]
) -> None:
    driver = opened(monkeypatch)
    assert driver.device.sm >= 50
    assert driver.device.memory_bytes > 1 << 30
    assert driver.device.name and "." in driver.device.driver_version and driver.provider  # noqa: PT018
    with driver.current():
        stream, events = driver.stream(), [driver.event(), driver.event()]
        pointer, there, back = driver.allocate(400), driver.pinned(400), driver.pinned(400)
        assert there.shape == (400,)
        assert pointer % 16 == 0
        there.view(np.float32)[:] = np.arange(100)
        driver.record(events[0], stream)
        driver.copy_to_device(pointer, there, stream)
        driver.copy_to_host(back, pointer, stream)
        driver.record(events[1], stream)
        driver.synchronise(stream)
        np.testing.assert_array_equal(back.view(np.float32), np.arange(100))
        assert driver.elapsed_ms(*events) > 0
        for event in events:
            driver.destroy_event(event)
        driver.destroy_stream(stream)
        driver.free(pointer)
    view = back[8:12].view(np.float32)
    del back, there
    np.testing.assert_array_equal(view, [2])  # pinned memory lives as long as its last view


@pytest.mark.parametrize("opened", [p for p in EVERY if "pycuda" not in str(p.id)])
def test_a_graph_does_what_was_captured(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[[pytest.MonkeyPatch], Driver]
) -> None:
    driver = opened(monkeypatch)
    assert driver.no_graphs is None
    with driver.current():
        stream, pointer = driver.stream(), driver.allocate(4)
        there, back = driver.pinned(4), driver.pinned(4)
        driver.begin_capture(stream)
        driver.copy_to_device(pointer, there, stream)
        driver.copy_to_host(back, pointer, stream)
        graph = driver.end_capture(stream)
        for value in (1, 2):
            there[:] = value
            driver.launch(graph, stream)
            driver.synchronise(stream)
            if not isinstance(getattr(driver, "_cuda", None), Bindings):  # the stand-in has no queues
                np.testing.assert_array_equal(back, value)
        driver.destroy_graph(graph)
        driver.destroy_stream(stream)
        driver.free(pointer)


def test_the_thread_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(driver: Driver) -> None:
        with driver.current(), driver.current():
            raise KeyError

    bindings, pycuda = with_bindings(monkeypatch), with_pycuda(monkeypatch)
    for driver in (bindings, pycuda):
        with pytest.raises(KeyError):
            fail(driver)
    assert bindings._cuda.pushed == 0  # type: ignore[attr-defined]
    assert pycuda._cuda.stack == []  # type: ignore[attr-defined]


def test_pinned_memory_is_given_back_with_its_last_view(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = with_bindings(monkeypatch)
    blocks = driver._cuda.memory.blocks  # type: ignore[attr-defined]
    array = driver.pinned(64)
    view = array[10:20].view(np.int16)
    del array
    assert len(blocks) == 1
    del view
    assert not blocks


@pytest.mark.parametrize("opened", [with_bindings, with_pycuda])
def test_cuda_errors_are_said_in_its_words(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[[pytest.MonkeyPatch], Driver]
) -> None:
    driver = opened(monkeypatch)
    with driver.current(), pytest.raises(BackendError, match=r"(?i)cuda.*out.of.memory.*smaller batches"):
        driver.allocate(1 << 31)


def test_pycuda_says_that_it_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = with_pycuda(monkeypatch)
    assert "cuda-bindings" in str(driver.no_graphs)
    with pytest.raises(BackendError, match="no CUDA graphs"):
        driver.begin_capture(1)


def called_functions() -> list[str]:
    calls = (n for n in ast.walk(ast.parse(inspect.getsource(cuda_python))) if isinstance(n, ast.Call))
    methods = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "_call"]
    return sorted({c.args[0].value for c in methods if isinstance(c.args[0], ast.Constant)})  # type: ignore[misc]


def test_every_function_is_one_of_the_real_bindings() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    names = called_functions()
    assert len(names) > 20
    assert [name for name in names if not hasattr(driver, name)] == []


@without_driver
def test_the_real_bindings_take_our_arguments() -> None:
    """They convert arguments before they look for libcuda, so its absence is the only thing that may be wrong."""
    pytest.importorskip("cuda.bindings.driver")
    driver = object.__new__(CudaPythonDriver)
    driver._cuda, driver._context = cuda_python._imported(), 0
    array = np.zeros(4, np.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: driver.current().__enter__(),
        lambda: driver.allocate(1),
        lambda: driver.free(256),
        lambda: driver.pinned(1),
        lambda: driver.stream(),
        lambda: driver.destroy_stream(3),
        lambda: driver.copy_to_device(256, array, 3),
        lambda: driver.copy_to_host(array, 256, 3),
        lambda: driver.synchronise(3),
        lambda: driver.event(),
        lambda: driver.destroy_event(3),
        lambda: driver.record(3, 4),
        lambda: driver.elapsed_ms(3, 4),
        lambda: driver.begin_capture(3),
        lambda: driver.end_capture(3),
        lambda: driver.launch(3, 4),
        lambda: driver.destroy_graph(3),
    ]
    for call in calls:
        with pytest.raises(BackendError, match="no libcuda"):
            call()


@without_driver
def test_without_a_driver_every_provider_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not mocked: the libraries as they are installed, and no libcuda on this machine."""
    monkeypatch.delenv(cuda.ENVIRONMENT, raising=False)
    with pytest.raises(BackendError, match=r"expected an NVIDIA driver and GPU\. Install NVIDIA's driver") as caught:
        open_driver()
    assert all(f"{name}: " in str(caught.value) for name in PROVIDERS)
    if PROVIDERS["cuda-bindings"].missing() is None:
        assert "cuda-bindings: no libcuda" in str(caught.value)


def test_without_libcuda_the_bindings_are_not_even_imported() -> None:
    """That takes longer than opening a session on another backend."""
    code = (
        "import sys\nfrom posekit.runtime.cuda import cuda_python\nfrom posekit.runtime.errors import BackendError\n"
        "cuda_python.LIBCUDA = 'libabsent.so.1'\n"
        "try:\n    cuda_python.CudaPythonDriver()\nexcept BackendError as error:\n    print(error)\n"
        "print('cuda' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, imported = done.stdout.splitlines()
    assert re.match(r"CUDA: got no libcuda, .*\(libabsent\.so\.1: .*\), expected an NVIDIA driver\. Install", said)
    assert imported == "False"


def rows(**drivers: Driver | str) -> dict[str, Provider]:
    """Providers that open, or say why not."""

    def row(driver: Driver | str) -> Provider:
        def opened() -> Driver:
            assert not isinstance(driver, str)
            return driver

        return Provider(lambda: driver if isinstance(driver, str) else None, opened)

    return {name: row(driver) for name, driver in drivers.items()}


def test_the_first_that_opens_is_taken_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SimulatedCuda(), SimulatedCuda()
    monkeypatch.setattr(cuda, "PROVIDERS", rows(absent="not installed", first=first, second=second))
    monkeypatch.setattr(cuda, "_opened", {})
    monkeypatch.delenv(cuda.ENVIRONMENT, raising=False)
    assert open_driver() is first
    assert open_driver("second") is second
    monkeypatch.setenv(cuda.ENVIRONMENT, "second")
    assert open_driver() is second
    assert open_driver("first") is first  # the argument comes before the environment
    monkeypatch.setenv(cuda.ENVIRONMENT, "absent")
    with pytest.raises(BackendError, match="got absent: not installed, expected") as caught:
        open_driver()
    assert "first" not in str(caught.value)  # a named one is opened or refused, never replaced
    monkeypatch.setenv(cuda.ENVIRONMENT, "abacus")
    with pytest.raises(BackendError, match="POSEKIT_CUDA"):
        open_driver()


def test_missing_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "PROVIDERS", rows(a="no a", b="no b"))
    assert cuda.missing() == "no a; no b"
    monkeypatch.setattr(cuda, "PROVIDERS", rows(a="no a", b=SimulatedCuda()))
    assert cuda.missing() is None
