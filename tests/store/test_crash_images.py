"""Images of a store as a crash may leave it: all that was acknowledged is there, and the store is sound [I4, I5].

How to judge thousands of them, with other seeds: see crash_images.py.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.store.crash_images import ACKNOWLEDGED, MODES, Recording, draw_images, opener, record
from tests.store.disk_shim import SYNC, WRITE

IMAGES = 200
BATCHES = 60


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, disk_shim: Path) -> Recording:
    return record(tmp_path_factory.mktemp("recording"), disk_shim, seed=1, batches=BATCHES)


def test_each_batch_is_written_synced_and_only_then_acknowledged(recording: Recording) -> None:
    """The trace is worth something: it has all calls, and LMDB syncs as it must, data first and the meta page after it."""
    batches: list[list[str]] = [[]]
    for call in recording.calls:
        if call.number == ACKNOWLEDGED:
            batches.append([])
        else:
            word = {WRITE: "meta" if call.is_synced else "write", SYNC: "sync"}[call.number]
            if batches[-1][-1:] != [word]:
                batches[-1].append(word)
    assert batches.pop() == []
    assert len(batches) == len(recording.states) == 1 + BATCHES
    kinds = Counter(tuple(batch) for batch in batches)
    assert set(kinds) <= {("write", "sync", "meta"), ()}, "one that changes nothing needs nothing"
    assert kinds[()] < BATCHES // 4


@pytest.mark.slow
def test_no_crash_image_lacks_what_was_acknowledged_or_is_damaged(recording: Recording, tmp_path: Path) -> None:
    faults, kinds, crash_points = [], set(), set()
    with opener(tmp_path) as opens:
        for image in draw_images(recording, seed=1, count=IMAGES):
            fault = opens.judge(recording, image)
            if fault:
                faults.append(fault)
            kinds.add(image.mode)
            crash_points.add(image.crash_at)
    assert faults == []
    assert kinds == set(MODES)
    assert len(crash_points) > IMAGES // 2


@pytest.mark.slow
def test_disk_that_forgets_what_it_was_told_to_keep_is_found_out(recording: Recording, tmp_path: Path) -> None:
    """The same images of a disk whose syncs do nothing: the judgement is not good for every image."""
    with opener(tmp_path) as opens:
        images = [
            one for one in draw_images(recording, 2, 24, honours_sync=False) if one.mode != "kept" and one.acked >= 0
        ]
        faults = [opens.judge(recording, image) for image in images]
    assert faults.count("") < len(faults) // 2
