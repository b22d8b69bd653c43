"""The text of a picture, both ways; and files that say something, nothing, or something hostile."""

import json
import zlib
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from darkroom import __version__
from darkroom.errors import PictureUnreadable
from darkroom.params import GenerationParams, LoraUse
from darkroom.picture_metadata import (
    DARKROOM,
    EXIF_IFD,
    LONGEST_TEXT,
    PARAMETERS,
    USER_COMMENT,
    PictureParameters,
    embedded,
    parameters_of,
    parse,
    read_file,
    user_comment,
    write,
)

HOUSE = PictureParameters(
    prompt="a red house",
    negative_prompt="fog",
    width=512,
    height=768,
    num_inference_steps=20,
    guidance_scale=7.0,
    sampler="dpmpp_2m_karras",
    seed=1234,
    model="darkroom-scenes",
)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
TRAPS = st.lists(
    st.sampled_from(["\n", "\r\n", ", ", '"', "\\", "Negative prompt: ", "Steps: 20", ": ", "a", " ", "Size: 1x1, "]),
    max_size=12,
).map("".join)


def test_text_is_that_of_the_web_ui():
    assert write(HOUSE) == (
        "a red house\n"
        "Negative prompt: fog\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1234, Size: 512x768, Model: darkroom-scenes, "
        f"Version: Darkroom {__version__}"
    )


def test_prompt_without_a_negative_one_has_two_lines():
    assert write(HOUSE.model_copy(update={"negative_prompt": ""})).splitlines()[1].startswith("Steps: 20, ")


@given(prompt=WORDS | TRAPS, negative_prompt=WORDS | TRAPS)
@example("a\nNegative prompt: b", "")
@example("a", "Negative prompt: b\nSteps: 1, Sampler: x, CFG scale: 2")
@example("Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1", "")
@example(" leading and trailing ", "\n")
@example('say "hello, \\"world\\""\n', '"')
@example("\u2028\u0085\x1c", "\ufeff")
def test_any_prompt_comes_back_as_it_was(prompt, negative_prompt):
    parameters = HOUSE.model_copy(update={"prompt": prompt, "negative_prompt": negative_prompt})
    read_back = parse(write(parameters))
    assert (read_back.prompt or "", read_back.negative_prompt or "") == (prompt, negative_prompt)
    others = {"prompt": "", "negative_prompt": ""}
    assert read_back.model_copy(update=others) == HOUSE.model_copy(update=others)


@given(
    width=st.integers(1, 99999),
    height=st.integers(1, 99999),
    steps=st.integers(1, 10**6),
    seed=st.integers(0, 2**64 - 1),
    model=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40),
    guidance=st.integers(0, 3000).map(lambda n: n / 100),
    strength=st.none() | st.integers(1, 100).map(lambda n: n / 100),
)
def test_settings_come_back_as_they_were(width, height, steps, seed, model, guidance, strength):
    parameters = PictureParameters(
        prompt="a",
        width=width,
        height=height,
        num_inference_steps=steps,
        seed=seed,
        model=model,
        guidance_scale=guidance,
        strength=strength,
        sampler="euler_a",
    )
    assert parse(write(parameters)) == parameters


def test_loras_come_back():
    parameters = HOUSE.model_copy(update={"loras": (LoraUse(name="ink", weight=0.8), LoraUse(name="fog", weight=-1.0))})
    assert 'Loras: "ink: 0.8, fog: -1"' in write(parameters)
    assert parse(write(parameters)) == parameters


def test_ordinary_prompt_stands_there_once():
    assert "Exact" not in write(HOUSE.model_copy(update={"prompt": 'two, "red": houses\nby the (sea:1.2), Steps: 20'}))


FOREIGN = (
    "masterpiece, (best quality:1.2), <lora:ink:0.8>\nby the sea\nNegative prompt: blurry, bad\nvery bad\n"
    "Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 832x1216, "
    'Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Denoising strength: 0.4, Hires prompt: "a, b: \\"c\\"", '
    'Lora hashes: "ink: abc, fog: def", Version: v1.10.1'
)


def test_text_of_the_web_ui_itself_is_understood():
    assert parse(FOREIGN) == PictureParameters(
        prompt="masterpiece, (best quality:1.2), <lora:ink:0.8>\nby the sea",
        negative_prompt="blurry, bad\nvery bad",
        num_inference_steps=28,
        sampler="dpmpp_2m_sde_karras",
        guidance_scale=6.5,
        seed=42,
        width=832,
        height=1216,
        model="sd_xl_base_1.0",
        strength=0.4,
    )


@pytest.mark.parametrize("text", ["", "a red house", "a house: red, garden: green", "\n\n"])
def test_text_without_settings_is_a_prompt(text):
    parsed = parse(text)
    assert (parsed.prompt or "").strip() == text.strip()
    assert parsed.seed is None


@pytest.mark.parametrize(
    "settings",
    [
        "Steps: many, Sampler: Nobody's, CFG scale: NaN, Seed: -1, Size: 0x0, Denoising strength: 2",
        "Steps: 0, CFG scale: 1e999, Seed: 99999999999999999999999, Size: 999999x1, Sampler: ",
        'Steps: , Sampler: "unclosed, CFG scale: "", Loras: "x"',
    ],
)
def test_setting_that_is_none_is_left_out(settings):
    assert parse(f"a\n{settings}").known.keys() <= {"prompt"}


@pytest.mark.parametrize(
    "line",
    ["a" * LONGEST_TEXT, "a: " * (LONGEST_TEXT // 3), '"' * LONGEST_TEXT, 'a: "' + "\\" * LONGEST_TEXT, " ," * 30000],
)
@pytest.mark.timeout(20)  # with a pattern that backtracks it would be minutes
def test_hostile_text_is_read_to_its_end(line):
    assert parse(f"a\n{line}").prompt


def test_prompt_longer_than_is_read_is_cut_and_not_refused():
    assert len(parse("a" * (LONGEST_TEXT + 1)).prompt) == LONGEST_TEXT


def test_parameters_of_a_job_tell_how_and_not_from_where():
    params = GenerationParams(
        prompt="a",
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=1.0,
        sampler="euler",
        seed=7,
        init_image="uploads/secret/1.png",
        strength=0.5,
    )
    told = parameters_of(params, model="small", seed=8)
    assert (told.seed, told.model, told.strength) == (8, "small", 0.5)
    assert "uploads" not in repr(embedded(told))


def file(format="png", *, exif=None, **chunks):
    pnginfo = PngInfo()
    for name, text in chunks.items():
        pnginfo.add_itxt(name, text)
    options = {"pnginfo": pnginfo} if format == "png" else {"exif": exif or b""}
    buffer = BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, format, **options)
    return buffer.getvalue()


def comment(raw):
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = raw
    return exif.tobytes()


def test_own_chunk_is_believed_before_the_text():
    found = read_file(file(parameters=FOREIGN, darkroom=embedded(HOUSE)[DARKROOM]))
    assert (found.text, found.parameters) == (FOREIGN, HOUSE)


@pytest.mark.parametrize("ours", ["", "{", "[]", '{"width": "wide"}', "x" * (LONGEST_TEXT + 1), '{"seed": -1}'])
def test_own_chunk_that_is_rubbish_is_passed_over(ours):
    assert read_file(file(parameters=write(HOUSE), darkroom=ours)).parameters == HOUSE


@pytest.mark.parametrize("format", ["jpeg", "webp", "avif"])
@pytest.mark.parametrize("words", ["a red house", "ein rotes Häuschen", "红色的房子 🏠"])
def test_comment_of_other_formats_is_read(format, words):
    text = write(HOUSE.model_copy(update={"prompt": words}))
    found = read_file(file(format, exif=comment(user_comment(text))))
    assert (found.text, found.parameters.prompt) == (text, words)


@pytest.mark.parametrize(
    "raw",
    [b"UNICODE\0" + "a red house".encode("utf-16-le"), b"ASCII\0\0\0a red house", b"UNICODE\0" + b"\0a\0 \0r\0e\0d"],
)
def test_comment_of_other_writers_is_read(raw):
    assert (read_file(file("jpeg", exif=comment(raw))).text or "").startswith("a red")


@pytest.mark.parametrize("raw", [b"JIS\0\0\0\0\0x", b"", b"x"])
def test_comment_in_no_known_encoding_says_nothing(raw):
    assert read_file(file("jpeg", exif=comment(raw))).text is None


def test_picture_that_says_nothing_has_no_parameters():
    found = read_file(file())
    assert (found.text, found.parameters.known) == (None, {})


@pytest.mark.parametrize("body", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"<svg/>", file()[:40]])
def test_what_is_no_picture_is_refused(body):
    with pytest.raises(PictureUnreadable):
        read_file(body)


def test_picture_of_too_many_pixels_is_refused():
    body = bytearray(file())
    body[16:24] = (60000).to_bytes(4, "big") * 2
    body[29:33] = zlib.crc32(body[12:29]).to_bytes(4, "big")
    with pytest.raises(PictureUnreadable, match="too many pixels"):
        read_file(bytes(body))


def test_chunk_that_unpacks_to_a_flood_is_refused():
    pnginfo = PngInfo()
    pnginfo.add_text(PARAMETERS, "a" * 10**8, zip=True)
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png", pnginfo=pnginfo)
    with pytest.raises(PictureUnreadable):
        read_file(buffer.getvalue())


@pytest.mark.parametrize("length", [LONGEST_TEXT, LONGEST_TEXT + 1])
def test_text_is_read_up_to_its_limit(length):
    found = read_file(file(parameters="a" * length))
    assert (found.text is not None) is (length == LONGEST_TEXT)


def test_json_names_its_writer_and_the_fields_that_a_job_has():
    ours = json.loads(embedded(HOUSE)[DARKROOM])
    assert ours.pop("version") == __version__
    assert PictureParameters.model_validate(ours) == HOUSE
    assert set(ours) - {"model"} <= set(GenerationParams.model_fields)
