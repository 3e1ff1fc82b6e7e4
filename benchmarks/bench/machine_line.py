"""A machine in one line, to stand beside a figure."""

from __future__ import annotations

from posekit.runtime.machine import Machine


def machine_line(machine: Machine) -> str:
    """ "Intel Xeon, 2 processors, governor performance, 24 GiB"; what is not known is left out."""
    cpu, jetson = machine.cpu, machine.jetson
    parts = [
        jetson and (jetson.model or "Jetson"),
        jetson and jetson.jetpack and f"JetPack {jetson.jetpack}",
        jetson and jetson.power_mode and f"mode {jetson.power_mode}",
        cpu.model or machine.architecture,
        cpu.count and f"{cpu.count} processors",
        cpu.governor and f"governor {cpu.governor}",
        machine.memory_bytes and f"{machine.memory_bytes / 2**30:.0f} GiB",
        machine.nvidia_driver and f"NVIDIA driver {machine.nvidia_driver}",
    ]
    return ", ".join(str(part) for part in parts if part)
