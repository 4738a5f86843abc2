"""A worker of `Encode` that needs no PyTorch: the name of a clip says what it does."""

import json
import os
import sys
import time
from pathlib import Path
from threading import Lock, Thread

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.shards import TOKENS
from vqtok.corpus.publish import publish
from vqtok.corpus.records import Seconds
from vqtok.corpus.settings import open_corpus

LOCK = Lock()


def reply(**line):
    """Send a line to the parent."""
    say(json.dumps(line) + "\n")


def say(text):
    with LOCK:
        sys.stdout.write(text)
        sys.stdout.flush()


def work(corpus, key, name, what):
    """Encode a clip, unless its name says something else."""
    shard = corpus.shard_of(key)
    if what == "hang":
        time.sleep(3600)
    elif what.startswith("sleep"):
        time.sleep(float(what.split()[1]))
    elif what == "stop":
        reply(stop="there is no space")
    elif what == "die":
        os._exit(7)
    shard.add(key, name, TOKENS[key], Seconds(1, 2, 0), [])
    if what in ("last words", "half a reply"):
        publish(shard)
        if what == "half a reply":
            say('{"clip": ')
        os._exit(9)
    publish(shard)
    reply(clip=key, piece=0, frames=9, tokens=288)


def main():
    """Run a worker."""
    setup = json.loads(sys.stdin.readline())
    corpus = open_corpus(setup["folder"])
    if setup["tokenizer"] == "none":
        os._exit(5)
    reply(ready="a fake")
    for line in sys.stdin:
        clip = json.loads(line)
        Thread(target=work, args=(corpus, clip["key"], clip["name"], clip["path"])).start()
    os._exit(0)


if __name__ == "__main__":
    main()
