"""Prompts are found in files as image generators lay them out."""

import io
import json
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dcmpl.images.metadata import Found, find_prompt, plain_prompt, texts_of

FOX = "a red fox"
SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: sd"
INFO = f"{FOX}\nNegative prompt: blurry, bad\n{SETTINGS}"
FOREIGN = "une renarde rousse, café, 狐 🦊"
FOREIGN_INFO = f"{FOREIGN}\nNegative prompt: flou, 犬\n{SETTINGS}"

USER_COMMENT, EXIF = 0x9286, 0x8769
DESCRIPTION, MAKE, MODEL, SOFTWARE = 0x010E, 0x010F, 0x0110, 0x0131

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"positive": ["6", 0], "negative": ["7", 0], "model": ["4", 0], "seed": 1},
        "is_changed": [float("nan")],
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": FOX, "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
}
WORKFLOW = {"nodes": [{"id": 6, "type": "CLIPTextEncode", "widgets_values": ["an ox"]}]}


def read(content: bytes) -> Found:
    with Image.open(io.BytesIO(content)) as image:
        return find_prompt(texts_of(image, image.getexif()))


def saved(form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, form, **options)
    return stream.getvalue()


def png(texts: dict[str, str], compressed: bool = False) -> bytes:
    """PNG with ``texts`` as Pillow writes them: Latin-1 in tEXt, others in iTXt."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text, zip=compressed)
    return saved("PNG", pnginfo=info)


def png_itxt(name: str, text: str, compressed: bool = False) -> bytes:
    info = PngInfo()
    info.add_itxt(name, text, zip=compressed)
    return saved("PNG", pnginfo=info)


def png_bytes(name: bytes, content: bytes, behind: bool = False) -> bytes:
    info = PngInfo()
    info.add(b"tEXt", name + b"\0" + content, after_idat=behind)
    return saved("PNG", pnginfo=info)


def with_exif(form: str, tags: dict[int, Any], inner: dict[int, Any] | None = None) -> bytes:
    """File with EXIF ``tags``, and with those of ``inner`` in its second directory."""
    exif = Image.Exif()
    for tag, value in ({SOFTWARE: "x"} | tags).items():  # Pillow writes none without a tag
        exif[tag] = value
    if inner:
        exif.get_ifd(EXIF).update(inner)
    return saved(form, exif=exif)


def commented(form: str, comment: Any) -> bytes:
    return with_exif(form, {}, {USER_COMMENT: comment})


def as_json(record: Any) -> str:
    return json.dumps(record)


FOOOCUS = as_json(
    {
        "adm_guidance": "(1.5, 0.8, 0.3)",
        "base_model": "juggernautXL_v8Rundiffusion",
        "full_negative_prompt": ["blurry", "unrealistic"],
        "full_prompt": [f"cinematic still {FOX} . emotional", FOX],
        "loras": [["sd_xl_offset_example-lora_1.0", 0.1, "4852686128"]],
        "negative_prompt": "blurry",
        "prompt": FOX,
        "prompt_expansion": f"{FOX}, intricate",
        "resolution": "(1152, 896)",
        "styles": "['Fooocus V2', 'Fooocus Enhance']",
        "version": "Fooocus v2.5.0",
    }
)
SWARM = as_json(
    {
        "sui_image_params": {
            "prompt": FOX,
            "negativeprompt": "blurry",
            "model": "sd_xl_base_1.0",
            "seed": 1,
            "swarm_version": "0.9.5.0",
        },
        "sui_extra_data": {"date": "2025-01-01", "original_prompt": "a <random:red,blue> fox"},
        "sui_models": [{"name": "sd_xl_base_1.0.safetensors", "param": "model", "hash": "0x00"}],
    }
)
INVOKE = as_json(
    {
        "app_version": "4.2.9",
        "generation_mode": "sdxl_txt2img",
        "positive_prompt": FOX,
        "negative_prompt": "blurry",
        "positive_style_prompt": "",
        "negative_style_prompt": "",
        "model": {"key": "x", "name": "sdxl", "base": "sdxl", "type": "main"},
    }
)


def sd_metadata(prompt: Any) -> str:
    image = {"prompt": prompt, "steps": 50, "cfg_scale": 7.5, "sampler": "k_lms", "seed": 1}
    about = {"model": "stable diffusion", "app_id": "invoke-ai/InvokeAI", "app_version": "v2.3.0"}
    return as_json({**about, "image": image})


NOVEL_3 = as_json(
    {"prompt": FOX, "steps": 28, "sampler": "k_euler", "uc": "blurry", "request_type": "x"}
)
NOVEL_2 = as_json({"steps": 28, "sampler": "plms", "seed": 1, "scale": 12.0, "uc": "blurry"})


def novel_4(prompt: str, *characters: str) -> dict[str, str]:
    """Texts of NovelAI's fourth version."""

    def caption(base: str, others: tuple[str, ...]) -> dict[str, Any]:
        places = [{"x": 0.5, "y": 0.5}]
        chars = [{"char_caption": other, "centers": places} for other in others]
        return {"caption": {"base_caption": base, "char_captions": chars}, "use_order": True}

    comment = {
        "prompt": prompt,
        "uc": "blurry",
        "v4_prompt": caption(prompt, characters),
        "v4_negative_prompt": caption("blurry", ("bad hands",) * len(characters)),
    }
    return {**NOVEL, "Description": prompt, "Comment": as_json(comment)}


NOVEL = {
    "Title": "NovelAI generated image",
    "Description": FOX,
    "Software": "NovelAI",
    "Source": "NovelAI Diffusion V4 4F49EC75",
    "Generation time": "3.1",
}
DRAW_THINGS = as_json(
    {"c": FOX, "uc": "blurry", "model": "sd_xl", "seed": 1, "size": "512x512", "v2": {"steps": 20}}
)
XMP = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6.0.0">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <exif:UserComment>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{DRAW_THINGS.replace('"', "&quot;")}</rdf:li>
    </rdf:Alt>
   </exif:UserComment>
   <xmp:CreatorTool>Draw Things</xmp:CreatorTool>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>"""
COMFY = {MODEL: f"prompt:{as_json(GRAPH)}", MAKE: f"workflow:{as_json(WORKFLOW)}"}
WAS = {MAKE: f"Prompt:{as_json(GRAPH)}", DESCRIPTION: f"Workflow:{as_json(WORKFLOW)}"}
JOB = "Job ID: 0a1b2c3d-0123-4567-89ab-0123456789ab"

FILES = {
    "A1111 in tEXt": png({"parameters": INFO}),
    "A1111 in zTXt": png({"parameters": INFO}, compressed=True),
    "A1111 in iTXt": png_itxt("parameters", INFO),
    "A1111 in packed iTXt": png_itxt("parameters", INFO, compressed=True),
    "A1111 behind the pixels": png_bytes(b"parameters", INFO.encode(), behind=True),
    "A1111 in lines of Windows": png_bytes(b"parameters", INFO.replace("\n", "\r\n").encode()),
    "A1111 without negatives": png({"parameters": f"{FOX}\n{SETTINGS}"}),
    "ComfyUI in PNG": png({"prompt": as_json(GRAPH), "workflow": as_json(WORKFLOW)}),
    "ComfyUI in WebP": with_exif("WEBP", COMFY),
    "ComfyUI in WebP without its workflow": with_exif("WEBP", {MODEL: COMFY[MODEL]}),
    "ComfyUI in WebP of another pack": with_exif("WEBP", WAS),
    "ComfyUI in a comment": commented("JPEG", b"UNICODE\0" + as_json(GRAPH).encode("utf-16-be")),
    "Fooocus in PNG": png({"parameters": FOOOCUS, "fooocus_scheme": "fooocus"}),
    "Fooocus in JPEG": with_exif("JPEG", {USER_COMMENT: FOOOCUS, SOFTWARE: "Fooocus v2.5.0"}),
    "Fooocus in WebP": with_exif("WEBP", {USER_COMMENT: FOOOCUS, SOFTWARE: "Fooocus v2.5.0"}),
    "A1111 by Fooocus": png({"parameters": INFO, "fooocus_scheme": "a1111"}),
    "SwarmUI in PNG": png({"parameters": SWARM}),
    "SwarmUI in JPEG": commented("JPEG", b"UNICODE\0" + SWARM.encode("utf-16-le")),
    "InvokeAI": png({"invokeai_metadata": INVOKE, "invokeai_graph": as_json({"nodes": {}})}),
    "InvokeAI 2": png({"sd-metadata": sd_metadata([{"prompt": FOX, "weight": 1.0}])}),
    "InvokeAI 2 with a text": png({"sd-metadata": sd_metadata(FOX)}),
    "InvokeAI 2 with negatives": png({"sd-metadata": sd_metadata(f"{FOX} [blurry, bad]")}),
    "InvokeAI 2 with two forms": png(
        {"sd-metadata": sd_metadata(FOX), "Dream": f'"{FOX} [blurry]" -s 50 -S 1'}
    ),
    "Dream": png({"Dream": f'"{FOX}" -s 50 -S 1 -W 512 -H 512 -C 7.5 -A k_lms'}),
    "Dream with negatives": png({"Dream": f'"{FOX} [blurry, bad]" -s 50 -S 1 -A k_lms'}),
    "NovelAI": png({**NOVEL, "Comment": NOVEL_2}),
    "NovelAI 3": png({**NOVEL, "Comment": NOVEL_3}),
    "NovelAI 4": png(novel_4(FOX)),
    "Draw Things": png_itxt("XML:com.adobe.xmp", XMP),
    "Draw Things in a comment": commented("JPEG", b"ASCII\0\0\0" + DRAW_THINGS.encode()),
    "Midjourney": png({"Description": f"{FOX} {JOB}", "Author": "someone"}),
}


@pytest.mark.parametrize("name", FILES)
def test_prompt_is_read_from_a_file(name: str) -> None:
    assert read(FILES[name]) == Found(FOX)


CODES = {
    "big-endian": b"UNICODE\0" + FOREIGN_INFO.encode("utf-16-be"),
    "little-endian": b"UNICODE\0" + FOREIGN_INFO.encode("utf-16-le"),
    "big-endian with a mark": b"UNICODE\0\xfe\xff" + FOREIGN_INFO.encode("utf-16-be"),
    "little-endian with a mark": b"UNICODE\0\xff\xfe" + FOREIGN_INFO.encode("utf-16-le"),
    "undefined": b"\0\0\0\0\0\0\0\0" + FOREIGN_INFO.encode(),
    "UTF-8 that is called ASCII": b"ASCII\0\0\0" + FOREIGN_INFO.encode(),
}


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("code", CODES)
def test_comment_is_read_in_each_encoding(form: str, code: str) -> None:
    assert read(commented(form, CODES[code])) == Found(FOREIGN)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("code", [b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8])
@pytest.mark.parametrize("rest", [b"", b"\0", b"\0\0\0  "])
def test_comment_of_plain_letters_is_read(form: str, code: bytes, rest: bytes) -> None:
    assert read(commented(form, code + INFO.encode("ascii") + rest)) == Found(FOX)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_comment_in_jis_is_read(form: str) -> None:
    info = f"赤い狐\nNegative prompt: 犬\n{SETTINGS}"
    assert read(commented(form, b"JIS\0\0\0\0\0" + info.encode("iso2022_jp"))) == Found("赤い狐")


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_comment_of_few_letters_of_ascii_is_read(order: str) -> None:
    info = f"赤い狐、雪の中の森、月の光\nNegative prompt: 犬\n{SETTINGS}"
    found = read(commented("JPEG", b"UNICODE\0" + info.encode(order)))
    assert found == Found("赤い狐、雪の中の森、月の光")


@pytest.mark.parametrize(
    "comment",
    [
        *(b"", b"UNICODE", b"UNICODE\0", b"UNICODE\0\0", b"UNICODE\0\xd8\0", b"\0" * 8),
        *(b"JIS\0\0\0\0\0\x1b$B\xff", b"ASCII\0\0\0", b"\xff" * 9, 5, (1, 2)),
    ],
)
def test_comment_of_anything_raises_nothing(comment: Any) -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF)[USER_COMMENT] = comment
    found = find_prompt(texts_of(Image.new("RGB", (8, 8)), exif))
    assert isinstance(found.prompt, str)
    found.prompt.encode()


@pytest.mark.parametrize("text", [FOREIGN, "café", "naïve … “fox”", "Ünïcode"])
def test_text_in_tEXt_is_utf8_or_latin(text: str) -> None:
    info = f"{text}\n{SETTINGS}"
    assert read(png_bytes(b"parameters", info.encode())) == Found(text)
    assert read(png({"parameters": info})) == Found(text)


def test_characters_of_novelai_stand_behind_the_prompt() -> None:
    found = read(png(novel_4(FOX, "a girl, hat", "an ox")))
    places = [found.prompt.find(part) for part in (FOX, "a girl, hat", "an ox")]
    assert places == sorted(places)
    assert places[0] == 0
    assert "blurry" not in found.prompt
    assert "bad hands" not in found.prompt


def test_options_of_midjourney_may_stay_but_not_its_number() -> None:
    found = read(png({"Description": f"{FOX} --ar 3:2 --v 6.0 {JOB}"}))
    assert found.prompt.startswith(FOX)
    assert "Job" not in found.prompt


def test_weights_and_networks_are_kept() -> None:
    prompt = "a (red:1.3) fox, <lora:snow:0.8> BREAK ((snow)) [ice]"
    assert read(png({"parameters": f"{prompt}\n{SETTINGS}"})) == Found(prompt)


NOTHING = {
    "plain PNG": saved("PNG"),
    "plain JPEG": saved("JPEG"),
    "plain WebP": saved("WEBP"),
    "photograph": with_exif("JPEG", {MAKE: "Canon", MODEL: "EOS 5D", DESCRIPTION: "a red fox"}),
    "description": png({"Description": "a red fox at home", "Software": "GIMP"}),
    "title and author": png({"Title": FOX, "Author": "someone", "Comment": "Made with GIMP"}),
    "workflow alone": png({"workflow": as_json(WORKFLOW)}),
    "graph without a sampler": png({"prompt": as_json({"6": GRAPH["6"]})}),
    "WebP without a sampler": with_exif("WEBP", {MODEL: "prompt:" + as_json({"6": GRAPH["6"]})}),
    "workflow alone in WebP": with_exif("WEBP", {MAKE: COMFY[MAKE]}),
    "negatives alone": png({"parameters": f"Negative prompt: blurry\n{SETTINGS}"}),
    "record of another kind": png({"parameters": as_json({"negative_prompt": "blurry"})}),
    "Fooocus without a prompt": png({"parameters": as_json({**json.loads(FOOOCUS), "prompt": ""})}),
    "metadata of no record": png({"invokeai_metadata": "[1, 2]", "sd-metadata": "{"}),
}


@pytest.mark.parametrize("name", NOTHING)
def test_file_without_a_prompt_has_a_reason(name: str) -> None:
    found = read(NOTHING[name])
    assert found.prompt == ""
    assert found.reason


@pytest.mark.parametrize("kind", ["sd-metadata", "invokeai_metadata", "Comment", "parameters"])
@pytest.mark.parametrize(
    "record",
    [
        {"prompt": 5, "image": 5, "v4_prompt": 5, "sui_image_params": 5, "positive_prompt": 5},
        {"prompt": {}, "image": {"prompt": {}}, "v4_prompt": {"caption": []}},
        {"image": {"prompt": [5, {"prompt": 5}, {}]}, "sui_image_params": {"prompt": []}},
        {"v4_prompt": {"caption": {"base_caption": 5, "char_captions": [5, {}, None]}}},
        {"v4_prompt": {"caption": {"base_caption": None, "char_captions": 5}}},
        [],
        5,
    ],
)
def test_record_of_anything_raises_nothing(kind: str, record: Any) -> None:
    texts = {"Software": "NovelAI", kind: json.dumps(record)}
    found = read(png(texts))
    assert found.prompt in ("", "5", "[]")
    assert bool(found.prompt) != bool(found.reason)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red fox", "a red fox"),
        ("", ""),
        ("a (red:1.3) fox", "a red fox"),
        ("a (red) fox", "a red fox"),
        ("a ((red)) fox", "a red fox"),
        ("a (((red:1.1)):0.9) fox", "a red fox"),
        ("a [red] fox", "a red fox"),
        ("a {red} fox", "a red fox"),
        ("a {{{red}}} fox", "a red fox"),
        ("a (red fox:1.2)", "a red fox"),
        ("(a red fox:.5)", "a red fox"),
        ("(a [red] fox:1.2)", "a red fox"),
        ("a red fox <lora:snow:0.8>", "a red fox"),
        ("<lora:snow-v1.2:0.8:0.5> a red fox", "a red fox"),
        ("<lyco:a b:1><hypernet:x:1>a red fox", "a red fox"),
        ("a red fox BREAK in snow", "a red fox in snow"),
        ("a red fox\nBREAK\nin snow", "a red fox in snow"),
        ("BREAK a red fox", "a red fox"),
        ("a BREAKING wave", "a BREAKING wave"),
        (r"fox \(animal\)", "fox (animal)"),
        (r"(fox \(animal\):1.2)", "fox (animal)"),
        ("at 10:30, ratio 3:2", "at 10:30, ratio 3:2"),
        ("a fox: red", "a fox: red"),
        ("1 < 2", "1 < 2"),
        ("赤い(狐:1.2)", "赤い狐"),
    ],
)
def test_weights_and_networks_are_taken_off_for_the_model(prompt: str, words: str) -> None:
    assert plain_prompt(prompt) == words


@pytest.mark.parametrize("mark", ["(", "[", "{", "<lora:", "(a:", "\\", ":1", "BREAK ", "(()"])
def test_words_of_odd_marks_end(mark: str) -> None:
    assert isinstance(plain_prompt(mark * 5000), str)
    assert isinstance(plain_prompt(mark * 200 + "fox" + ")" * 200), str)
