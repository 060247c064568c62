"""The stock SuperExec without its command line, which loads what every other Flower program needs: 35 MB.

It uses a part of Flower that is not its public interface; the pin of flwr in pyproject.toml and
tests/e2e/test_flower_stack.py stand for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.superexec.run_superexec import run_superexec
from flwr.supercore.utils import disable_process_dumping


def main(argv: Sequence[str] | None = None) -> None:
    """Start ServerApps that the SuperLink asks for, until the process is ended."""
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.flower.superexec", description="Start the ServerApps of rounds."
    )
    parser.add_argument("--runtime-api-address", required=True, help="host:port of the SuperLink")
    parser.add_argument("--root-certificates", required=True, help="PEM of the authority of its certificate")
    parser.add_argument(
        "--superexec-auth-secret-file", required=True, help="secret shared with the SuperLink"
    )
    arguments = parser.parse_args(argv)
    disable_process_dumping(strict=False)
    run_superexec(
        runtime_api_address=arguments.runtime_api_address,
        insecure=False,
        root_certificates_path=arguments.root_certificates,
        superexec_auth_secret=load_superexec_auth_secret(secret_file=arguments.superexec_auth_secret_file),
    )


if __name__ == "__main__":
    main()
