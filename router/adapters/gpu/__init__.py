"""Probes of free GPU memory: NVML, a command, a Prometheus page, AMD sysfs, static values."""
