"""Jobs of several processes on this machine, as a cluster would start them."""

import os
import socket
import subprocess
import sys

TIMEOUT = float(os.environ.get("REVERIE_JOB_SECONDS", "900"))


def job(*words: str, processes: int = 2, devices: int = 1) -> list[tuple[int, str]]:
    """Run ``python WORDS`` in several processes of one job, with some devices each: (status, what it said) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    started = []
    for rank in range(processes):
        env = os.environ | here | (ranks | {"JAX_PROCESS_ID": str(rank)} if processes > 1 else {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([sys.executable, *words], env=env, **pipes))
    try:
        said = [child.communicate(timeout=TIMEOUT)[0] for child in started]
    finally:
        for child in started:
            child.kill()
    return [(child.returncode, text) for child, text in zip(started, said, strict=True)]


def all_done(ended: list[tuple[int, str]]) -> None:
    """Fail with what the processes of a job said unless each ended well."""
    assert all(status == 0 for status, _ in ended), "\n\n".join(text for _, text in ended)
