"""The structs of ``cpu_decoder.cpp``, field for field, and its functions."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

from dbgpt_guanaco.engine.kernels import compiled
from dbgpt_guanaco.errors import ConfigurationError

HEADERS = ("attention.h", "linear.h", "lora.h", "rows.h", "vectors.h")
PLAIN, NF4 = 0, 1
NF4_GROUP = 64  # weights that share a scale
NF4_COLUMNS = 32  # of a packed block
BLOCK_TOKENS = 16  # of the cache
# The linear layers of a decoder layer, in the order of their LoRAs.
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
LOW_STEP = 32  # ranks that are computed together
MAX_HEAD_SIZE, HEAD_SIZE_STEP, MAX_GROUP = 256, 32, 64
SECONDS = ("linear layers", "attention", "output head", "rest")


class Linear(ctypes.Structure):
    """A layer's weights."""

    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("kind", c_int32),
        ("reserved", c_int32),
    )


class Pair(ctypes.Structure):
    """A LoRA's matrices for a layer; without a rank there are none."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("rank", c_int64),
        ("scale", c_float),
        ("reserved", c_int32),
    )


class Norm(ctypes.Structure):
    """A norm; without weights there is none."""

    _fields_ = (("weight", c_void_p), ("epsilon", c_float), ("reserved", c_int32))


class LayerCache(ctypes.Structure):
    """Keys and values of a layer."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("slots", c_int64),
        ("window", c_int32),
    )


class Layer(ctypes.Structure):
    """A decoder layer."""

    _fields_ = (
        *((name, Norm) for name in ("norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, Linear) for name in PROJECTIONS),
        ("cache", LayerCache),
    )


class Shape(ctypes.Structure):
    """The attention of all layers."""

    _fields_ = (("heads", c_int32), ("kv_heads", c_int32), ("size", c_int32), ("scale", c_float))


class Model(ctypes.Structure):
    """All weights."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("shape", Shape),
        ("norm", Norm),
        ("head", Linear),
    )


class Pass(ctypes.Structure):
    """What one pass reads and writes."""

    _fields_ = (
        ("tokens", c_int64),
        ("hidden", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("slots", c_void_p),
        ("spans", c_void_p),
        ("num_spans", c_int64),
        ("blocks", c_void_p),
        ("wanted", c_void_p),
        ("num_wanted", c_int64),
        ("logits", c_void_p),
        ("scratch", c_void_p),
        ("phases", c_void_p),
        ("threads", c_int64),
        ("seconds", c_void_p),
        ("loras", ctypes.POINTER(ctypes.POINTER(Pair))),
        ("token_loras", c_void_p),
        ("runs", c_void_p),
        ("num_runs", c_int64),
        ("low_width", c_int64),
    )


def load() -> ctypes.CDLL:
    """Return the decoder's library, its functions typed.

    Raises:
        ConfigurationError: There is none for this machine; the message says why.
    """
    reason = compiled.why_not()
    if reason:
        raise ConfigurationError(reason)
    library = compiled.load("cpu_decoder.cpp", HEADERS)
    library.guanaco_struct_bytes.restype = c_int64
    own = (
        ctypes.sizeof(Layer) * 1_000_000
        + ctypes.sizeof(Model) * 1_000
        + ctypes.sizeof(Pass)
        + ctypes.sizeof(Pair)
    )
    if library.guanaco_struct_bytes() != own:
        raise ConfigurationError("the compiled decoder lays out its structs in another way")
    library.guanaco_scratch_size.argtypes = (ctypes.POINTER(Model), c_int64, c_int64)
    library.guanaco_scratch_size.restype = c_int64
    library.guanaco_phase_bytes.argtypes = (ctypes.POINTER(Model),)
    library.guanaco_phase_bytes.restype = c_int64
    library.guanaco_multiply.argtypes = (
        ctypes.POINTER(Linear),
        c_void_p,
        c_int64,
        c_void_p,
        c_int64,
    )
    library.guanaco_multiply.restype = None
    library.guanaco_run.argtypes = (ctypes.POINTER(Model), ctypes.POINTER(Pass))
    library.guanaco_run.restype = None
    return library
