"""What a cluster is asked to run for a finetuning command."""

from __future__ import annotations

import pytest

from roboserve.jobs import JobError
from roboserve.submit import Submission, _request


def test_elsewhere_a_run_folder_must_be_whole() -> None:
    for words in (("train",), ("train", "--out", "runs/mine"), ("train", "--out", "/runs/x", "--publish=here")):
        with pytest.raises(JobError, match=r"out: is missing|must be an absolute path"):
            _request(Submission(method="tmrl", arguments=words), ["finetune.tmrl", *words], local=False)
    asked = _request(Submission(method="tmrl", arguments=()), ["finetune.tmrl", "--out", "/runs/it's"], local=False)
    assert asked["entrypoint"] == """exec python -m finetune.tmrl --out '/runs/it'"'"'s'"""
