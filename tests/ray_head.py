"""A Ray head with a dashboard on 127.0.0.1, for tests of `serve deploy`: `python -m tests.ray_head DASHBOARD_PORT`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from serving.launch import serve_environment


def main() -> None:
    """Run until standard input closes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-head-"))
    os.environ.update(serve_environment(folder))
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=int(sys.argv[1]),
            object_store_memory=150 * 2**20,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
