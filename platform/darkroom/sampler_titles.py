"""What users of AUTOMATIC1111's web UI call the samplers, both ways. Knows names only; the engine has the samplers."""

TITLES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "sa_solver": "SA Solver",
    "tcd": "TCD",
    "unipc": "UniPC",
}
# How the sigmas are spread, by the suffix of a sampler's name.
SPACINGS = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}
# What a model trained with betas takes unless its entry in the catalog says otherwise.
COMMON = tuple(
    name
    for base in TITLES
    for name in (base, f"{base}_karras")
    if name in TITLES or base not in {"ddim", "ddpm", "euler_a", "lcm", "pndm", "sa_solver", "tcd"}
)
_NAMES = {title.lower(): name for name, title in TITLES.items()}


def title_of(name: str) -> str:
    """The title of a sampler; a name that has none is its own."""
    base, _, suffix = name.rpartition("_")
    if base in TITLES and suffix in SPACINGS:
        return f"{TITLES[base]} {SPACINGS[suffix]}"
    return TITLES.get(name, name)


def name_of(title: str, *, spacing: str = "") -> str | None:
    """The sampler that is meant by a title, in any case, with its spacing at its end or apart. None if none is."""
    words = title.lower().split()
    if words and words[-1] in SPACINGS:
        spacing = words.pop()
    base = _NAMES.get(" ".join(words))
    suffix = spacing.lower()
    return f"{base}_{suffix}" if base and suffix in SPACINGS else base
