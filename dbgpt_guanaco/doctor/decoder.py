"""The compiled decoder for CPUs: can it be built and run here?"""

from dbgpt_guanaco.doctor.findings import Finding, ok, warning
from dbgpt_guanaco.doctor.setup import Setup
from dbgpt_guanaco.engine.kernels import compiled, decoder_structs
from dbgpt_guanaco.errors import ConfigurationError

SLOWER = "answers are right without it, and on this CPU several times slower"


def cpu_decoder(setup: Setup) -> Finding:
    """Compile the decoder, as the first start of the server does; it is kept."""
    from dbgpt_guanaco.doctor.arithmetic import device_of

    if device_of(setup).type != "cpu":
        return ok("not needed: a GPU computes")
    if missing := compiled.missing_cpu_flags():
        return ok(f"not for this CPU, which has no {', '.join(missing)}; torch computes")
    if problem := compiled.why_not():
        return warning(f"{problem}; {SLOWER}", "sudo apt-get install g++")
    try:
        decoder_structs.load()
    except ConfigurationError as error:
        return warning(f"{error}; {SLOWER}", "sudo apt-get install --reinstall g++ libgomp1")
    has_bf16 = not compiled.missing_cpu_flags("avx512_bf16")
    return ok(f"compiled for this CPU (AVX-512 {'with' if has_bf16 else 'without'} bfloat16)")
