"""Reads a federation's audit entries and goes on where it stopped: AMQP_URL=amqps://... read_entries.py STATE [START]

START, for the first time: first (the default), last, next, an offset, or a time such as 2026-11-21T09:00:00+00:00.
"""

import asyncio
import hashlib
import json
import os
import sys
from datetime import datetime
from pathlib import Path

import aio_pika


def begin(word):
    return word if word in ("first", "last", "next") else int(word) if word.isdigit() else datetime.fromisoformat(word)


async def main(file, start="first"):
    state = json.loads(file.read_text()) if file.exists() else {"start": start, "next": {}}
    connection = await aio_pika.connect(os.environ["AMQP_URL"])
    async with connection, connection.channel() as channel:
        await channel.set_qos(prefetch_count=100)
        stream = await channel.get_queue(os.environ.get("STREAM", "cohortium.entries.log"), ensure=False)
        async with stream.iterator(arguments={"x-stream-offset": begin(str(state["start"]))}) as messages:
            async for message in messages:
                head, leaf = message.headers, hashlib.sha256(b"\0" + message.body).hexdigest()
                log, index = head["cohortium-log"], int(head["cohortium-index"])
                if leaf != head["cohortium-leaf-hash"]:
                    sys.exit(f"entry {index} of log {log} is damaged")
                if index == state["next"].get(log, index):  # an entry may come again: take the next one only
                    state["next"][log] = index + 1
                    event = json.loads(message.body)["event"]
                    print(log, index, leaf, event["type"], flush=True)  # your work goes here
                state["start"] = head["x-stream-offset"] + 1
                file.with_suffix(".new").write_text(json.dumps(state))
                file.with_suffix(".new").replace(file)  # whole or not at all, whenever we are killed
                await message.ack()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
