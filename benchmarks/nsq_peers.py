"""MosaicML streaming and WebDataset on blobs; run by benchmarks/nsq.py in an environment of theirs.

python benchmarks/nsq_peers.py FOLDER MEDIA COUNT BYTES
"""

import json
import random
import sys
import time
from pathlib import Path


def rate(count: int, began: float) -> float:
    """Return records a second since `began`."""
    return round(count / (time.perf_counter() - began), 1)


def mosaic(folder: Path, blobs: list[bytes]) -> dict[str, float]:
    """Write, read at random and read in order with MosaicML streaming."""
    from streaming import MDSWriter, StreamingDataset

    began = time.perf_counter()
    with MDSWriter(out=str(folder), columns={"video": "bytes"}, hashes=["sha1"]) as out:
        for blob in blobs:
            out.write({"video": blob})
    write = rate(len(blobs), began)
    data = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    order = list(range(len(blobs)))
    random.Random(0).shuffle(order)
    began = time.perf_counter()
    total = sum(len(data[i]["video"]) for i in order)
    at_random = rate(len(blobs), began)
    began = time.perf_counter()
    total += sum(len(row["video"]) for row in data)
    assert total == 2 * sum(map(len, blobs))
    return {
        "write_per_second": write,
        "random_per_second": at_random,
        "epoch_per_second": rate(len(blobs), began),
    }


def web(folder: Path, blobs: list[bytes]) -> dict[str, float]:
    """Write and read in order with WebDataset, which has no random access."""
    import webdataset

    folder.mkdir(parents=True)
    began = time.perf_counter()
    with webdataset.TarWriter(str(folder / "0.tar")) as out:
        for index, blob in enumerate(blobs):
            out.write({"__key__": f"{index:06d}", "mp4": blob})
    write = rate(len(blobs), began)
    data = webdataset.WebDataset(str(folder / "0.tar"), shardshuffle=False)
    began = time.perf_counter()
    assert sum(len(row["mp4"]) for row in data) == sum(map(len, blobs))
    return {"write_per_second": write, "epoch_per_second": rate(len(blobs), began)}


def main() -> None:
    """Run both and print one JSON object."""
    folder, source = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
    count, size = int(sys.argv[3]), int(sys.argv[4])
    blobs = [source[i : i + size] for i in range(count)]
    found = {"webdataset": web(folder / "web", blobs)}
    found["mosaicml-streaming"] = mosaic(folder / "mds", blobs)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
