"""A cheap C-STORE sender: everything is encoded before the clock starts, so that the receiver is what is measured.

    python -m tests.benchmarks.blast PORT FOLDER [--slice I/N] [--pdu BYTES] [--associations N]

Sends every *.dcm of FOLDER (or its I-th of N slices) over one association, one outstanding request, as nearly every
SCU does. Says ``ready``, waits for a line on standard input, sends, and prints one line of JSON. With
``--associations`` it opens and releases that many associations instead.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from pathlib import Path

from dicomnode.store import part10
from tests.peers.parrot import RELEASE_RQ, Parrot, p_data, pdv, store_rq

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def message(number: int, context: int, sop_class: str, uid: str, data: memoryview, limit: int) -> bytes:
    """All PDUs of one C-STORE request, each as large as ``limit`` allows."""
    room = limit - 6
    parts = [p_data(pdv(context, 3, store_rq(number % 65535 + 1, sop_class, uid)))]
    for start in range(0, len(data), room):
        piece = data[start : start + room]
        last = 2 if start + room >= len(data) else 0
        parts += [struct.pack(">BxLLBB", 4, len(piece) + 6, len(piece) + 2, context, last), bytes(piece)]
    return b"".join(parts)


def connect(port: int, files: list[Path], limit: int) -> tuple[Parrot, list[bytes]]:
    """Open an association for Part 10 files and encode their requests for the receiver's PDU size."""
    raws = [path.read_bytes() for path in files]
    heads = [part10.read_head(raw) for raw in raws]
    pairs = sorted({(head.sop_class_uid, head.transfer_syntax_uid) for head in heads})
    contexts = {pair: 2 * number + 1 for number, pair in enumerate(pairs)}
    proposed = {number: (pair[0], [pair[1]]) for pair, number in contexts.items()}
    parrot = Parrot.associated(port, proposed, called="ANY-SCP", calling="BLAST")
    limit = min(limit, parrot.max_pdu or limit)
    encoded = []
    for number, (raw, head) in enumerate(zip(raws, heads, strict=True)):
        context = contexts[head.sop_class_uid, head.transfer_syntax_uid]
        data = memoryview(raw)[head.length :]
        encoded.append(message(number, context, head.sop_class_uid, head.sop_instance_uid, data, limit))
    return parrot, encoded


def send(port: int, folder: Path, part: str, limit: int) -> dict[str, float]:
    index, count = map(int, part.split("/"))
    parrot, encoded = connect(port, sorted(folder.glob("*.dcm"))[index::count], limit)
    sock, refused = parrot.sock, 0
    sock.settimeout(None)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for raw in encoded:
        sock.sendall(raw)
        answer = sock.recv(4096)
        while len(answer) < 6 or len(answer) < 6 + int.from_bytes(answer[2:6], "big"):
            answer += sock.recv(4096)
        status = answer.rfind(b"\0\0\0\x09\2\0\0\0")  # (0000,0900)
        refused += answer[0] != 4 or answer[status + 8 : status + 10] != b"\0\0"
    wall = time.perf_counter() - start
    parrot.release()
    return {"sent": len(encoded), "refused": refused, "wall": wall}


def associate(port: int, count: int) -> dict[str, float]:
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for _ in range(count):
        parrot = Parrot.associated(port, {1: (CT, [EXPLICIT])}, called="ANY-SCP", calling="BLAST")
        parrot.send(RELEASE_RQ)
        parrot.pdu()
        parrot.sock.close()
    return {"sent": count, "refused": 0, "wall": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slice", default="0/1")
    parser.add_argument("--pdu", type=int, default=131072)
    parser.add_argument("--associations", type=int)
    options = parser.parse_args()
    if options.associations:
        result = associate(options.port, options.associations)
    else:
        result = send(options.port, options.folder, options.slice, options.pdu)
    print(json.dumps(result))
    sys.exit(bool(result["refused"]))


if __name__ == "__main__":
    main()
