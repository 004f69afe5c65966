"""The one place where a vector becomes something that may leave: `make_upload` (rule R1).

Out of it come masked words, which say nothing without the masks of every other survivor, and a signed header of hashes,
commitments and sealed boxes. Nothing else of a vector ever leaves this site.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohortium_connector.domain.work import Product, staleness
from cohortium_connector.feedback import Feedback, keep_residual, scratch, with_residual
from cohortium_connector.spool import PRIVATE, remove, sync_folder
from cohortium_messages.secure_sum import UploadHeader, VectorSpec, WindowParams
from cohortium_protocol.codec import GridCodec, RoundingStream, codec_for
from cohortium_protocol.floats import FloatFile
from cohortium_protocol.grid import GridEncoder
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.masking import Words
from cohortium_protocol.signing import IdentityKey
from cohortium_protocol.upload import SiteMasker, prepare_upload, sign_upload
from cohortium_protocol.window import RosterView

STEP = 0
"""Windows of this version have one step."""


class Stopped(Exception):
    """The upload is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Order:
    """All that making one upload needs; read from the spool, so that the making itself is a plain function."""

    params: WindowParams
    view: RosterView
    index: int
    keys: WindowKeys
    product: Product
    vector: Path
    target: Path
    feedback: Feedback | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A complete upload on disk: its header, this site's own shares (secret), and its size."""

    header: UploadHeader
    own_box: bytes
    size: int

    def __repr__(self) -> str:
        return f"Finished({self.size} bytes)"


def make_upload(order: Order, identity: IdentityKey, halt: threading.Event) -> Finished:
    """Encode and mask the vector chunk by chunk into the upload's file, sync it, sign the header.

    Two calls give two different uploads; one that was not recorded as saved never left, and is replaced. Memory is a
    few chunks. Raises a `LocalFault` where the vector cannot be encoded, `Stopped` where `halt` is set.
    """
    prepared = prepare_upload(order.view, STEP, order.index, order.keys)
    unfinished = order.target.with_suffix(".part")
    vector = os.open(order.vector, os.O_RDONLY)
    target = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
    try:
        with contextlib.ExitStack() as stack:
            chunks = _Chunks(order, vector, stack)
            masker = SiteMasker(chunks.plan, prepared.masks)
            size = 0
            for index in range(chunks.plan.chunk_count):
                if halt.is_set():
                    raise Stopped
                wire = masker.mask_chunk(index, chunks.words(index))
                _write_all(target, wire, size)
                size += len(wire)
            os.fsync(target)
            chunks.done()
    except BaseException:
        remove(unfinished)
        raise
    finally:
        os.close(vector)
        os.close(target)
    unfinished.replace(order.target)
    sync_folder(order.target.parent)
    header = sign_upload(prepared, masker.vec_root(), chunks.plan.vec_len, identity)
    return Finished(header, prepared.own_box, size)


class _Chunks:
    """Ring words of the vector, chunk by chunk, in order; `done` after the last one."""

    def __init__(self, order: Order, handle: int, stack: contextlib.ExitStack) -> None:
        spec, codec = order.params.vector, codec_for(order.params.vector, order.view.n)
        self.plan = codec.plan
        self.words: Callable[[int], Words]
        self.done: Callable[[], None] = lambda: None
        if isinstance(codec, GridCodec):
            feedback, update = order.feedback, FloatFile(handle, spec.dimension)
            if feedback is not None:
                update = stack.enter_context(with_residual(update, feedback))
            encoder = codec.encoder(
                update,
                staleness=staleness(order.params, order.product.base),
                rows=order.product.rows,
                quiet=order.params.privacy_mode != "none",
                uniforms=RoundingStream(secrets.token_bytes(32)),
            )
            self.words = encoder.chunk
            if feedback is not None:
                own = stack.enter_context(scratch(feedback.after.with_suffix(".own.part"), codec.kept))
                self.words = _decoding(encoder, own)
                self.done = lambda: keep_residual(encoder, own, spec.dimension, feedback)
        else:
            values = _integers(handle, spec)
            self.words = lambda index: codec.encode_chunk(values, index)


def _decoding(encoder: GridEncoder, own: FloatFile) -> Callable[[int], Words]:
    """The encoder's words; what the platform would read in them is written down beside."""

    def words(index: int) -> Words:
        made = encoder.chunk(index)
        encoder.decode_own(index, made, own)
        return made

    return words


def _integers(handle: int, spec: VectorSpec) -> NDArray[np.int64]:
    content = os.pread(handle, 8 * spec.dimension + 8, 0)
    return np.frombuffer(content, dtype="<i8").astype(np.int64)


def _write_all(handle: int, content: bytes, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], offset + done)
