"""The machine as its files tell it: recorded trees, what is absent, and what is garbage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime import cuda, machine
from posekit.runtime.cuda.driver import Device
from posekit.runtime.errors import BackendError
from posekit.runtime.machine import (
    Cpu,
    Jetson,
    jetpack_from_l4t,
    l4t,
    machine_from_root,
    nvidia_driver,
    power_mode_from_nvpmodel,
    saturates_int8,
)

CPUFREQ = "sys/devices/system/cpu/cpu{}/cpufreq/{}"
ORIN_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc flagm"
X86_FLAGS = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ss ht syscall nx "
    "pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology cpuid pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt "
    "aes xsave avx f16c rdrand bmi1 avx2 bmi2 avx512f avx512dq avx512bw avx512vl avx512_vnni amx_tile amx_int8"
)


def arm_cpuinfo(count: int, part: str, features: str) -> str:
    """As a Jetson writes it."""
    one = (
        "processor\t: {}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 62.50\nFeatures\t: " + features + "\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: "
        + part
        + "\nCPU revision\t: 1\n\n"
    )
    return "".join(one.format(i) for i in range(count))


def x86_cpuinfo(count: int) -> str:
    one = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz\nflags\t\t: {}\n\n"
    return "".join(one.format(i, X86_FLAGS) for i in range(count))


ORIN = {
    "proc/cpuinfo": arm_cpuinfo(6, "0xd42", ORIN_FEATURES),
    "proc/meminfo": "MemTotal:        7802076 kB\nMemFree:         3127748 kB\n",
    "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  "
    "(buildbrain@mobile-u64)  Tue Jan  7 17:35:12 PST 2025\nGCC version:  collect2: fatal error: ld terminated\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nNAME="Ubuntu"\n',
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    **{CPUFREQ.format(i, "scaling_governor"): "schedutil\n" for i in range(6)},
    **{CPUFREQ.format(i, "scaling_cur_freq"): f"{729600 + i * 100000}\n" for i in range(6)},
}
THOR = {
    "proc/cpuinfo": arm_cpuinfo(14, "0xd83", ORIN_FEATURES + " sve sve2 i8mm bf16"),
    "proc/meminfo": "MemTotal:       128827972 kB\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release Build\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n",
}
SERVER = {
    "proc/cpuinfo": x86_cpuinfo(4),
    "proc/meminfo": "MemTotal:       527988048 kB\n",
    "proc/sys/kernel/osrelease": "5.15.0-130-generic\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    **{CPUFREQ.format(i, "scaling_governor"): "powersave\n" if i else "performance\n" for i in range(4)},
}
NVPMODEL = "NV Power Mode: MAXN_SUPER\n2\n"


def tree(root: Path, files: dict[str, str], nvpmodel: str | None = None) -> Path:
    """A recorded machine below `root`; nvpmodel: a script in its place."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if nvpmodel is not None:
        (root / "usr/sbin").mkdir(parents=True)
        (root / "usr/sbin/nvpmodel").write_text(nvpmodel)
        (root / "usr/sbin/nvpmodel").chmod(0o755)
    return root


def says(text: str, code: int = 0) -> str:
    return f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n"


def test_an_orin_with_jetpack_6_2(tmp_path: Path) -> None:
    found = machine_from_root(tree(tmp_path, ORIN, says(NVPMODEL)))
    board = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert found.jetson == Jetson(board, "36.4.3", "6.2", "MAXN_SUPER")
    assert found.cpu == Cpu("Arm Cortex-A78AE", 6, ("asimd", "asimdhp", "asimddp"), "schedutil", (729.6, 1229.6))
    assert found.memory_bytes == 7802076 * 1024
    assert (found.os, found.kernel, found.nvidia_driver) == ("Ubuntu 22.04.5 LTS", "5.15.148-tegra", "540.4.0")


def test_a_thor_with_jetpack_7(tmp_path: Path) -> None:
    found = machine_from_root(tree(tmp_path, THOR))
    assert found.jetson == Jetson("NVIDIA Jetson AGX Thor Developer Kit", "38.2.0", "7.0", None)
    assert found.cpu.model == "Arm Neoverse-V3AE"
    assert {"i8mm", "sve2", "asimddp"} <= set(found.cpu.instructions)
    assert (found.cpu.governor, found.cpu.frequency_mhz, found.kernel) == (None, None, None)
    assert found.nvidia_driver == "580.00"


def test_a_server_with_and_without_a_driver(tmp_path: Path) -> None:
    found = machine_from_root(tree(tmp_path / "with", SERVER))
    assert (found.nvidia_driver, found.jetson) == ("550.54.15", None)
    assert found.cpu.model == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert found.cpu.instructions == ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "amx_tile", "amx_int8")
    assert found.cpu.governor == "performance, powersave"
    without = {name: text for name, text in SERVER.items() if "nvidia" not in name}
    assert machine_from_root(tree(tmp_path / "without", without)).nvidia_driver is None


@pytest.mark.parametrize(
    ("cpuinfo", "saturates"),
    [
        ("flags\t\t: fpu sse4_1 avx2 fma", True),  # Haswell, Zen 1 to 3
        ("flags\t\t: fpu avx2 avx512f avx512bw", True),  # Skylake-X
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx2 avx_vnni", False),
        ("flags\t\t: fpu avx2 amx_tile amx_int8", False),
        ("Features\t: fp asimd", False),  # Arm multiplies signed bytes into 16 bits and adds in 32
        ("", False),
    ],
)
def test_int8_products_overflow_on_x86_without_vnni(tmp_path: Path, cpuinfo: str, saturates: bool) -> None:
    assert saturates_int8(tree(tmp_path, {"proc/cpuinfo": f"processor\t: 0\n{cpuinfo}\n"})) is saturates


def test_cores_are_counted_once_whatever_threads_they_have(tmp_path: Path) -> None:
    siblings = {f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": f"{n % 2},{n % 2 + 2}\n" for n in range(4)}
    found = machine_from_root(tree(tmp_path, {**SERVER, **siblings})).cpu
    assert (found.count, found.cores) == (4, 2)


def test_cards_are_named_as_the_kernel_module_has_them(tmp_path: Path) -> None:
    """The layout of /proc/driver/nvidia/gpus/BUS/information, as the driver's README has it."""
    card = "Model: \t\t {}\nIRQ:   \t\t 33\nGPU UUID: \t GPU-c6398fd0\nBus Location: \t {}\n"
    cards = {
        f"proc/driver/nvidia/gpus/{bus}/information": card.format(name, bus)
        for name, bus in (("Tesla K80", "0000:81:00.0"), ("NVIDIA GeForce RTX 4090", "0000:01:00.0"))
    }
    assert machine_from_root(tree(tmp_path, {**SERVER, **cards})).gpus == ("NVIDIA GeForce RTX 4090", "Tesla K80")


@pytest.mark.parametrize(
    ("gpu", "cpu", "locked"),
    [
        (("1020000000", "1020000000"), "1728000", True),
        (("306000000", "1020000000"), "1728000", False),
        (("1020000000", "1020000000"), "729600", False),
        (("", ""), "1728000", None),
        (None, "1728000", None),
    ],
)
def test_clocks_of_a_jetson_are_locked_where_every_limit_is(
    tmp_path: Path, gpu: tuple[str, str] | None, cpu: str, locked: bool | None
) -> None:
    """What `jetson_clocks` does; it is told by the limits, which any user may read."""
    files = {CPUFREQ.format(n, "scaling_min_freq"): "1728000\n" for n in range(6)}
    files |= {CPUFREQ.format(n, "scaling_max_freq"): "1728000\n" for n in range(6)}
    files[CPUFREQ.format(3, "scaling_min_freq")] = f"{cpu}\n"
    if gpu is not None:
        files["sys/class/devfreq/17000000.gpu/min_freq"], files["sys/class/devfreq/17000000.gpu/max_freq"] = gpu
    found = machine_from_root(tree(tmp_path, {**ORIN, **files})).jetson
    assert found is not None
    assert found.clocks_locked is locked


def test_an_empty_root_gives_none_of_it(tmp_path: Path) -> None:
    found = machine_from_root(tmp_path)
    assert found.cpu == Cpu(None, None)
    assert (found.os, found.kernel, found.memory_bytes, found.nvidia_driver, found.jetson) == (None,) * 5


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("35.4.1", "5"),
        ("36.3.0", "6.0"),
        ("36.4.0", "6.1"),
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.9", "6.1 or 6.2"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("36.9.0", None),
        ("99.0.0", None),
        ("", None),
    ],
)
def test_jetpack_follows_from_l4t_as_far_as_it_is_known(release: str, jetpack: str | None) -> None:
    assert jetpack_from_l4t(release) == jetpack


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "38.2.0"),
        ("# R36 (release), REVISION: , GCID: 1", None),
        ("nothing of the kind", None),
        ("", None),
    ],
)
def test_l4t_is_read_from_its_release_file(tmp_path: Path, text: str, version: str | None) -> None:
    assert l4t(tree(tmp_path, {"etc/nv_tegra_release": text})) == version
    assert l4t(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (NVPMODEL, "MAXN_SUPER"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n", "15W"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W_ALL\n3\n", "MODE_30W_ALL"),
        ("NVPM ERROR: failed to read PARAM TPC_POWER_GATING\n", None),
        ("NV Power Mode: \n1\n", None),
        ("", None),
    ],
)
def test_the_power_mode_is_the_name_that_nvpmodel_says(text: str, mode: str | None) -> None:
    assert power_mode_from_nvpmodel(text) == mode


@pytest.mark.parametrize("script", [says(NVPMODEL, code=255), "#!/nowhere\n", "\0\1\2", "#!/bin/sh\nsleep 30\n"])
def test_an_nvpmodel_that_fails_or_hangs_is_no_power_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(machine, "NVPMODEL_TIMEOUT_S", 0.2)
    found = machine_from_root(tree(tmp_path, ORIN, script))
    assert found.jetson is not None
    assert found.jetson.power_mode is None


@given(st.binary(max_size=300), st.sampled_from(sorted(ORIN)))
def test_garbage_in_one_file_spoils_no_other(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, name: str
) -> None:
    root = tree(tmp_path_factory.mktemp("root"), ORIN)
    whole = machine_from_root(root)
    (root / name).write_bytes(garbage)
    found = machine_from_root(root)
    untouched = {
        "proc/cpuinfo": found.memory_bytes == whole.memory_bytes and found.cpu.governor == "schedutil",
        "proc/driver/nvidia/version": found.cpu == whole.cpu and found.jetson == whole.jetson,
    }
    assert untouched.get(name, found.cpu.model == whole.cpu.model)


@given(st.text(max_size=200), st.sampled_from(["", "# R36 (release), ", "NVRM version: x ", "NV Power Mode: "]))
def test_what_is_found_is_one_line_that_can_be_shown(
    tmp_path_factory: pytest.TempPathFactory, text: str, start: str
) -> None:
    names = (
        "etc/nv_tegra_release",
        "proc/driver/nvidia/version",
        "proc/device-tree/model",
        "proc/sys/kernel/osrelease",
    )
    root = tmp_path_factory.mktemp("root")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((start + text).encode(errors="surrogateescape" if text.isascii() else "replace"))
    found = machine_from_root(root)
    values = [found.kernel, found.nvidia_driver, l4t(root), power_mode_from_nvpmodel(start + text)]
    if found.jetson:
        values += [found.jetson.model, found.jetson.l4t, found.jetson.jetpack]
    for value in values:
        assert value is None or (value and value.isprintable())


def test_what_cannot_be_opened_is_none(tmp_path: Path) -> None:
    """A pipe would block for ever, a folder cannot be read, a link may lead to itself."""
    for name in ("proc", "etc", "proc/driver/nvidia/version"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / "proc/cpuinfo")
    (tmp_path / "etc/nv_tegra_release").symlink_to("nv_tegra_release")
    found = machine_from_root(tmp_path)
    assert (found.cpu, found.nvidia_driver, found.jetson) == (Cpu(None, None), None, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_none(tmp_path: Path) -> None:
    root = tree(tmp_path, SERVER)
    (root / "proc/driver/nvidia/version").chmod(0)
    assert nvidia_driver(root) is None


def test_the_gpu_is_what_the_driver_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("Orin", 87, 8 << 30, "12.6")

    class Opened:
        def __init__(self) -> None:
            self.device = device

    def refuse() -> None:
        raise BackendError("CUDA", got="no libcuda", expected="a driver", remedy="Install it.")

    monkeypatch.setattr(cuda, "open_driver", Opened)
    assert machine.gpu() == device
    monkeypatch.setattr(cuda, "open_driver", refuse)
    assert machine.gpu() is None
