"""Robot demonstrations on disk in the LeRobot dataset v3.0 layout: the one place that knows it.

```
meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
data/chunk-000/file-000.parquet  videos/observation.images.CAMERA/chunk-000/file-000.mp4
```
Layout as documented with huggingface/lerobot (LeRobotDataset v3.0): several episodes share a file; the episodes table
says where each begins and ends. Needs pyarrow and av (extra `record`), not lerobot.

Every finished episode is on disk in full before the next begins: a killed writer loses the open episode and no other.
"""

from __future__ import annotations

from robot_client.dataset_layout import DatasetInfo, Episode
from robot_client.dataset_reader import DatasetReader
from robot_client.dataset_writer import DatasetWriter

__all__ = ["DatasetInfo", "DatasetReader", "DatasetWriter", "Episode"]
