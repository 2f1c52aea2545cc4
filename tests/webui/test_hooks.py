"""The script in the hands of three ages of its host: their calling order, their states, their shapes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from hosts import Component, Host, hub_of_2023
from tiny_parts import PATCHES, Parts
from torch.nn import functional

from trifocal.conversation.exported import exported
from trifocal.conversation.templates import TEMPLATES

AGES = ["A", "B", "C"]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
PATCH, START, END = 32000, 32001, 32002


def picture(colour: str = "red", size: tuple[int, int] = (90, 60)) -> PIL.Image.Image:
    drawn = PIL.Image.new("RGB", size, colour)
    PIL.ImageDraw.Draw(drawn).ellipse([5, 5, 40, 50], fill="yellow")
    return drawn


def encoded(drawn: PIL.Image.Image) -> str:
    file = io.BytesIO()
    drawn.save(file, format="JPEG", quality=95)
    return base64.b64encode(file.getvalue()).decode()


def tag(drawn: PIL.Image.Image) -> str:
    return f'<img src="data:image/jpeg;base64,{encoded(drawn)}">'


def box(drawn: PIL.Image.Image) -> dict[str, Any]:
    data = f"data:image/jpeg;base64,{encoded(drawn)}"
    return {"type": "image", "name": "a.jpg", "image_data": data, "image_id": "a"}


def letters(text: str) -> list[int]:
    """Ids of text, without the tokenizer: a byte is a token, in the order of the byte alphabet's letters."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    shown = {b: chr(b) for b in kept} | {b: chr(256 + at) for at, b in enumerate(others)}
    place = {letter: at for at, letter in enumerate(sorted(shown.values()))}
    return [3 + place[shown[b]] for b in text.encode()]


def rows_of(tag_text: str, parts: Parts) -> torch.Tensor:
    """The seed extension's arithmetic, from the data in a tag to rows ``[patches, hidden]``.

    The short side to 56, the middle cut out, scaled and normalised; the output of the last block but one
    without the class token; one linear layer.
    """
    data = base64.b64decode(tag_text.split("base64,")[1].split('"')[0])
    opened = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    width, height = opened.size
    short = min(width, height)
    resized = opened.resize((width * 56 // short, height * 56 // short), PIL.Image.Resampling.BICUBIC)
    left, top = (resized.width - 56) // 2, (resized.height - 56) // 2
    cut = resized.crop((left, top, left + 56, top + 56))
    values = torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).view(56, 56, 3).float() / 255
    pixels = ((values - MEAN) / STD).permute(2, 0, 1)[None]
    with torch.no_grad():
        states = parts.tower(pixels, output_hidden_states=True).hidden_states
        return functional.linear(states[-2][0, 1:], parts.weight, parts.bias)


def expected(parts: Parts, *pieces: str | torch.Tensor, bos: bool = True) -> tuple[list[int], torch.Tensor]:
    """Ids and rows of a prompt of texts and pictures: ``<im_start>``, the picture's rows, ``<im_end>``."""
    table = parts.language.get_input_embeddings().weight.detach()
    ids, rows = ([1], [table[[1]]]) if bos else ([], [])
    for piece in pieces:
        if isinstance(piece, str):
            ids += letters(piece)
            rows.append(table[letters(piece)])
        else:
            ids += [START, *[PATCH] * len(piece), END]
            rows += [table[[START]], piece, table[[END]]]
    return ids, torch.cat(rows)


def assert_saw(host: Host, parts: Parts, *pieces: str | torch.Tensor, bos: bool = True) -> None:
    ids, rows = expected(parts, *pieces, bos=bos)
    made = host.generated[-1]
    assert made["inputs"].tolist() == [ids]
    torch.testing.assert_close(made["inputs_embeds"][0], rows, atol=1e-5, rtol=1e-5)


Start = Callable[..., Host]


@pytest.mark.parametrize("age", AGES)
def test_ids_and_embeddings_are_the_seed_s(age: str, start: Start, parts: Parts) -> None:
    host, image = start(age), tag(picture())
    host.completions(f"### Human: \nWhat is unusual: \n{image}\n### Assistant: \n")
    assert_saw(host, parts, "### Human: \nWhat is unusual:", rows_of(image, parts), "### Assistant: \n")


@pytest.mark.parametrize("age", AGES)
def test_eyes_named_by_hub_id_are_found_with_the_hub_s_library_of_2023(
    age: str, start: Start, parts: Parts, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of_2023(monkeypatch, {"openai/clip": parts.clip, "liuhaotian/LLaVA": parts.llava})
    own = {**settings, "llava-clip_repo": "openai/clip", "llava-projector_repo": "liuhaotian/LLaVA"}
    host, image = start(age, own=own), tag(picture())
    host.completions(f"See {image}")
    assert_saw(host, parts, "See", rows_of(image, parts))


@pytest.mark.parametrize(
    ("projector", "sentence"),
    [("liuhaotian/LLaVA", r"could not be fetched from the hub"), ("a/b--c", "and no hub id")],
)
def test_eyes_that_the_hub_s_library_of_2023_can_t_fetch_are_told_in_a_sentence(
    projector: str, sentence: str, start: Start, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of_2023(monkeypatch, {})
    host = start("A", own={**settings, "llava-projector_repo": projector})
    with pytest.raises(Exception, match=sentence):
        host.completions(f"See {tag(picture())}")


@pytest.mark.parametrize("age", AGES)
def test_whatever_fails_is_told_in_a_sentence(
    age: str, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = start(age)

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("module 'torch' has no attribute 'of_tomorrow'")

    monkeypatch.setattr("trifocal.webui.hooks.load_vision", broken)
    with pytest.raises(Exception, match=r"can't be shown.*AttributeError.*of_tomorrow") as raised:
        host.completions(f"See {tag(picture())}")
    assert type(raised.value).__name__ == "PictureError"
    assert "Traceback" in caplog.text  # for whoever mends it


@pytest.mark.parametrize("age", AGES)
def test_two_pictures_differ_and_one_picture_repeats(age: str, start: Start) -> None:
    host = start(age)
    answers = []
    for colour in ("red", "blue", "red"):
        host.completions(f"See {tag(picture(colour))} now")
        answers.append(host.shared.model(inputs_embeds=host.generated[-1]["inputs_embeds"]).logits[0, -1])
    assert torch.equal(answers[0], answers[2])
    assert not torch.allclose(answers[0], answers[1], atol=1e-4)


@pytest.mark.parametrize("age", AGES)
def test_the_model_is_not_blind_where_the_placeholder_could_be_padding(
    age: str, start: Start, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.language.generation_config, "pad_token_id", PATCH)
    host = start(age)
    host.completions(f"See {tag(picture())} now")
    ids = set(host.generated[-1]["inputs"][0].tolist())
    assert PATCH not in ids


@pytest.mark.parametrize("age", AGES)
def test_text_alone_goes_back_as_it_came(age: str, start: Start, parts: Parts) -> None:
    host = start(age)
    host.completions('What is 2 < 3? <image> <b>bold</b> <im_patch> <img src="https://example.com/a.png"> <img')
    assert "inputs_embeds" not in host.generated[-1]
    assert host.generated[-1]["inputs"].tolist()[0][0] == 1
    assert parts.language.last_prompt_token_count == len(host.generated[-1]["inputs"][0])


@pytest.mark.parametrize("age", AGES)
def test_several_pictures_are_all_seen_when_asked_for_and_else_only_the_last(
    age: str, start: Start, parts: Parts
) -> None:
    host, (red, blue) = start(age), (tag(picture("red")), tag(picture("blue", (60, 70))))
    host.completions(f"A{red}B{blue}C")
    assert_saw(host, parts, "AB", rows_of(blue, parts), "C")
    host.extension.params["add_all_images_to_prompt"] = True
    host.completions(f"A{red}B{blue}C")
    assert_saw(host, parts, "A", rows_of(red, parts), "B", rows_of(blue, parts), "C")


@pytest.mark.parametrize("age", AGES)
def test_the_length_that_is_told_is_the_length_that_is_made(age: str, start: Start, parts: Parts) -> None:
    host, image = start(age), tag(picture())
    prompt = f"Look: {image} What?"
    host.completions(prompt)
    made = len(host.generated[-1]["inputs"][0])
    assert host.extension.custom_tokenized_length(prompt) == made == parts.language.last_prompt_token_count
    assert host.extension.custom_tokenized_length("Only text.") is None


@pytest.mark.parametrize("age", AGES)
def test_letters_of_picture_tokens_stay_letters_beside_a_picture(age: str, start: Start, parts: Parts) -> None:
    host, image = start(age), tag(picture())
    host.completions(f"a <im_patch><im_end> b {image} c <image></s>d")
    ids = host.generated[-1]["inputs"][0].tolist()
    assert ids.count(PATCH) == PATCHES
    assert ids.count(START) == ids.count(END) == 1
    assert ids.count(2) == 1  # the host's own templates write </s>: it stays what it is in a prompt without pictures


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize(
    "form", ["<img src='{}'>", '<IMG alt="a" src = "{}" />', "<img src={}>", '<img\nsrc="{}" width=3>']
)
def test_a_tag_may_be_written_in_any_way_and_hold_any_type_of_picture(age: str, form: str, start: Start) -> None:
    host, file = start(age), io.BytesIO()
    picture().save(file, format="PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    host.completions(f'Beside <img src="a.png"> {form.format(uri)} here')
    assert host.generated[-1]["inputs"][0].tolist().count(PATCH) == PATCHES


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('<img src="data:image/png;base64,AAAA">', "the picture of <img> tag 1: this is no picture"),
        ('<img src="data:image/png;base64,AAAA', "tag at character 4: it is not closed"),
        ('<img src="data:text/plain,hello">', "of type 'text/plain', not of an image"),
    ],
)
def test_a_tag_with_data_that_is_no_picture_is_an_error_and_never_letters(
    age: str, bad: str, said: str, start: Start
) -> None:
    host = start(age)
    with pytest.raises(Exception, match=said):
        host.completions(f"See {bad}")


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize(
    "form",
    ["See {}", "![a]({})", '<img src="https://example.com/a.png" src="{}">', '<img alt="<img src=\'a\'>" src="{}">'],
)
def test_a_picture_s_data_outside_of_a_tag_is_an_error_and_never_letters(age: str, form: str, start: Start) -> None:
    host, data = start(age), encoded(picture(size=(40, 30)))
    with pytest.raises(Exception, match="outside of an <img> tag"):
        host.completions(f"{tag(picture())} {form.format('data:image/jpeg;base64,' + data)}")


# budget


@pytest.mark.parametrize("age", AGES)
def test_a_prompt_that_is_too_long_keeps_its_beginning_token_and_whole_pictures(
    age: str, start: Start, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    host, image = start(age), tag(picture())
    host.completions(f"{'x' * 100}{image} What?", truncation_length=60, max_new_tokens=8)
    room = 60 - 8 - 1 - PATCHES - 2 - len("What?")
    assert_saw(host, parts, "x" * room, rows_of(image, parts), "What?")
    assert f"the first {100 - room} characters" in caplog.text
    assert "max_new_tokens" in caplog.text


@pytest.mark.parametrize("age", AGES)
def test_a_picture_that_does_not_fit_whole_is_left_out_whole_and_named(
    age: str, start: Start, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    host = start(age)
    later = f"{'y' * 34} USER:"  # the picture is an earlier question's
    host.completions(f"abc{tag(picture())}{later}", truncation_length=60, max_new_tokens=8)
    made = host.generated[-1]["inputs"].tolist()[0]
    assert made == [1, *letters(later)]
    assert "1 picture" in caplog.text


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("age", AGES)
def test_a_completion_whose_last_question_would_lose_its_picture_is_refused(
    age: str, every: bool, start: Start
) -> None:
    host = start(age)
    host.extension.params["add_all_images_to_prompt"] = every
    old, new = tag(picture()), tag(picture("blue"))
    with pytest.raises(Exception, match=r"the prompt is longer than the 52 positions .* its picture would be left out"):
        host.completions(f"USER: {old} A? USER: {new}{'y' * 40}", truncation_length=60, max_new_tokens=8)
    assert not host.generated


def test_a_picture_beside_a_completion_is_refused_where_it_does_not_fit(start: Start) -> None:
    host = start("C")
    with pytest.raises(Exception, match="the prompt is longer than the 52 positions"):
        host.completions(f"USER: {'y' * 40}", raw_images=[picture()], truncation_length=60, max_new_tokens=8)


@pytest.mark.parametrize("age", AGES)
def test_no_room_at_all_is_said(age: str, start: Start) -> None:
    host = start(age)
    with pytest.raises(Exception, match="max_new_tokens leaves 0 positions"):
        host.completions(f"abc{tag(picture())}", truncation_length=60, max_new_tokens=60)


# the picture field


def field(host: Host) -> tuple[Component, Component]:
    image, every = (c for c in host.gradio.made if c.kwargs.get("label"))
    return image, every


@pytest.mark.parametrize("age", AGES)
def test_an_uploaded_picture_goes_to_the_end_of_the_next_message_only(age: str, start: Start, parts: Parts) -> None:
    host = start(age)
    image, _ = field(host)
    image.fire("upload", picture())
    host.chat("What is this?")
    prompt = host.generated[-1]["prompt"]
    assert 'What is this?\n<img src="data:image/jpeg;base64,' in prompt
    assert "inputs_embeds" in host.generated[-1]
    host.chat("And now?")
    assert "<img" not in host.generated[-1]["prompt"].split("And now?")[1]


@pytest.mark.parametrize("age", AGES)
def test_a_mark_places_the_uploaded_picture(age: str, start: Start) -> None:
    host = start(age)
    field(host)[0].fire("upload", picture())
    host.chat("Is this <image> red?")
    assert 'Is this <img src="data:' in host.generated[-1]["prompt"]
    assert '"> red?' in host.generated[-1]["prompt"]


@pytest.mark.parametrize("age", AGES)
def test_a_picture_that_is_taken_back_is_not_sent(age: str, start: Start) -> None:
    host = start(age)
    image, _ = field(host)
    image.fire("upload", picture())
    image.fire("clear")
    host.chat("What is this?")
    assert "<img" not in host.generated[-1]["prompt"]


@pytest.mark.parametrize("age", AGES)
def test_the_box_starts_as_set_and_changes_what_is_seen(age: str, start: Start, settings: dict[str, Any]) -> None:
    host = start(age, own={**settings, "llava-add_all_images_to_prompt": True})
    _, every = field(host)
    assert every.kwargs["value"] is True
    every.fire("change", False)
    assert host.extension.params["add_all_images_to_prompt"] is False


@pytest.mark.parametrize("age", AGES)
def test_the_host_clears_the_field_when_a_message_is_sent(age: str, start: Start) -> None:
    host = start(age)
    assert len(host.shared.gradio["Generate"].events["click"]) == 1
    assert len(host.shared.gradio["textbox"].events["submit"]) == 1


def test_an_upload_is_made_smaller_but_never_larger(start: Start) -> None:
    host = start("B")
    for size, small in (((1000, 500), (672, 336)), ((300, 200), (300, 200)), ((400, 2000), (336, 1680))):
        field(host)[0].fire("upload", picture(size=size))
        host.chat("x")
        data = host.generated[-1]["prompt"].split("base64,")[1].split('"')[0]
        assert PIL.Image.open(io.BytesIO(base64.b64decode(data))).size == small


# chats


@pytest.mark.parametrize("age", ["B", "C"])
def test_regenerate_and_continue_see_the_picture_of_the_history(age: str, start: Start, parts: Parts) -> None:
    host, image = start(age), tag(picture())
    rows = rows_of(image, parts)
    history = {"internal": [[f"What?\n{image}", "It is"]], "visible": [["What?", "It is"]]}
    bos = age == "C" or True
    host.chat("", regenerate=True, history=history)
    assert_saw(host, parts, "USER: What?", rows, "ASSISTANT:", bos=bos)
    host.chat("", cont=True, history=history)
    assert_saw(host, parts, "USER: What?", rows, "ASSISTANT: It is", bos=bos)
    host.impersonate(history=history)
    assert_saw(host, parts, "USER: What?", rows, "ASSISTANT: It is\nUSER:", bos=bos)


def test_regenerate_and_continue_see_the_picture_in_the_first_age(start: Start, parts: Parts) -> None:
    host, image = start("A"), tag(picture())
    host.shared.history["internal"].append([f"What?\n{image}", "It is"])
    host.shared.history["visible"].append(["What?", "It is"])
    host.chat("", cont=True)
    assert_saw(host, parts, "Context.\nYou: What?", rows_of(image, parts), "Assistant: It is")
    host.chat("", regenerate=True)
    assert_saw(host, parts, "Context.\nYou: What?", rows_of(image, parts), "Assistant:")


@pytest.mark.parametrize("age", AGES)
def test_a_history_is_trimmed_by_positions_and_not_by_letters_of_pictures(age: str, start: Start) -> None:
    host = start(age)
    host.extension.params["add_all_images_to_prompt"] = True
    turns = [[f"Q{i}\n{tag(picture())}", f"A{i}"] for i in range(3)]
    if age == "A":
        host.shared.history["internal"] += turns
        host.shared.history["visible"] += turns
        host.chat("Last?", truncation_length=200, chat_prompt_size=200)
    else:
        host.chat("Last?", history={"internal": turns, "visible": turns}, truncation_length=200)
    prompt = host.generated[-1]["prompt"]
    assert all(f"Q{i}" in prompt for i in range(3))  # three pictures of a thousand letters each: 54 positions


# what the host keeps beside a prompt


def test_a_picture_of_the_chat_box_is_seen_where_its_mark_stands(start: Start, parts: Parts) -> None:
    host, drawn = start("C"), picture()
    host.chat("What?", files=[box(drawn)])
    assert_saw(host, parts, "USER:", rows_of(tag(drawn), parts), "What?\nASSISTANT:")


def test_pictures_of_the_chat_api_match_their_marks_from_the_end(start: Start, parts: Parts) -> None:
    host = start("C")
    host.extension.params["add_all_images_to_prompt"] = True
    pictures = [picture("red"), picture("blue"), picture("green")]
    messages = []
    for number, drawn in enumerate(pictures):
        url = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(drawn)}"}}
        messages.append({"role": "user", "content": [{"type": "text", "text": f"Q{number}"}, url]})
        if number < 2:
            messages.append({"role": "assistant", "content": "An answer."})
    reply = host.api_chat(messages, truncation_length=100)
    blue, green = (rows_of(tag(drawn), parts) for drawn in pictures[1:])
    assert_saw(host, parts, "USER:", blue, "Q1\nASSISTANT: An answer.\nUSER:", green, "Q2\nASSISTANT:")
    assert reply["usage"]["prompt_tokens"] == len(host.generated[-1]["inputs"][0])


def test_impersonating_sees_pictures_of_the_history_s_record(start: Start, parts: Parts) -> None:
    host, drawn = start("C"), picture()
    history = {
        "internal": [["What?", "It is red."]],
        "visible": [["What?", "It is red."]],
        "metadata": {"user_0": {"attachments": [box(drawn)]}},
    }
    host.impersonate(history=history)
    assert_saw(host, parts, "USER:", rows_of(tag(drawn), parts), "What?\nASSISTANT: It is red.\nUSER:")


def test_pictures_beside_a_completion_go_to_its_front_or_where_marks_stand(start: Start, parts: Parts) -> None:
    host, drawn = start("C"), picture()
    rows = rows_of(tag(drawn), parts)
    lossless = PIL.Image.open(io.BytesIO(base64.b64decode(encoded(drawn))))
    host.completions("USER: What? ASSISTANT:", raw_images=[lossless])
    assert_saw(host, parts, rows, "USER: What? ASSISTANT:")
    host.completions("USER: What is <image> here? ASSISTANT:", raw_images=[lossless])
    assert_saw(host, parts, "USER: What is", rows, "here? ASSISTANT:")
    host.completions("USER: <__media__> What? ASSISTANT:", raw_images=[lossless])
    assert_saw(host, parts, "USER:", rows, "What? ASSISTANT:")


def test_a_mark_without_pictures_is_text(start: Start) -> None:
    host = start("C")
    host.completions("What is <__media__>?")
    assert "inputs_embeds" not in host.generated[-1]


# settings


@pytest.mark.parametrize("age", AGES)
def test_nothing_is_loaded_before_the_first_picture(age: str, start: Start, settings: dict[str, Any]) -> None:
    missing = {**settings, "llava-clip_repo": "/nowhere", "llava-projector_repo": "/nowhere"}
    host = start(age, own=missing)
    host.completions("Only text.")
    with pytest.raises(Exception, match="/nowhere"):
        host.completions(f"A picture: {tag(picture())}")
    host.completions("Only text again.")


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("names", [("projector_filename",), ("projector_file",)])
def test_the_seed_s_settings_name_the_parts(
    age: str, names: tuple[str, ...], start: Start, parts: Parts, settings: dict[str, Any]
) -> None:
    own = {k: v for k, v in settings.items() if "projector_file" not in k}
    host = start(
        age, own={**own, f"llava-{names[0]}": "mm_projector.bin", "llava-clip_bits": 16, "llava-projector_bits": 16}
    )
    image = tag(picture())
    host.completions(f"See {image}")
    rows = host.generated[-1]["inputs_embeds"][0, -PATCHES - 1 : -1]
    torch.testing.assert_close(rows, rows_of(image, parts), atol=2e-2, rtol=2e-2)
    assert not torch.equal(rows, rows_of(image, parts))  # half precision shows


def test_settings_of_the_successor_are_taken_over(start: Start, settings: dict[str, Any]) -> None:
    own = {k: v for k, v in settings.items() if "clip_device" not in k}
    more = {
        "multimodal-vision_bits": 16,
        "multimodal-vision_device": "cpu",
        "multimodal-add_all_images_to_prompt": True,
    }
    host = start("B", own={**own, **more})
    assert host.extension.params["vision_bits"] == 16
    assert host.extension.params["add_all_images_to_prompt"] is True
    host.completions(f"See {tag(picture())}")
    assert "inputs_embeds" in host.generated[-1]


def test_under_the_successor_s_name_its_settings_and_the_seed_s_both_count(
    start: Start, settings: dict[str, Any]
) -> None:
    host = start("B", name="multimodal", own={**settings, "multimodal-projector_bits": 16})
    assert host.extension.params["projector_bits"] == 16
    assert host.extension.params["clip_repo"] == settings["llava-clip_repo"]


@pytest.mark.parametrize("name", ["clip_bits", "vision_bits", "projector_bits"])
@pytest.mark.parametrize("bits", [8, "4", 64, True])
def test_bits_that_do_not_exist_are_refused_with_the_setting_and_what_does(
    name: str, bits: object, start: Start, settings: dict[str, Any]
) -> None:
    host = start("C", own={**settings, f"llava-{name}": bits})
    with pytest.raises(Exception, match=rf"setting llava-{name} is {bits!r}; it may be 32 or 16"):
        host.completions(f"See {tag(picture())}")


def test_the_log_names_the_tower_and_the_projector_that_are_used(
    start: Start, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    start("C").completions(f"See {tag(picture())}")
    assert f"tiny-llava-13b-v0 sees with {parts.clip} and {parts.llava / 'mm_projector.bin'}" in caplog.text


@pytest.mark.parametrize(
    ("device", "wanted", "switched"), [("cuda", False, [False]), ("cuda", True, []), ("cpu", False, [])]
)
def test_cudnn_s_attention_is_spared_on_a_gpu_unless_it_is_wanted(
    device: str,
    wanted: bool,
    switched: list[bool],
    start: Start,
    settings: dict[str, Any],
    parts: Parts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", calls.append)
    host = start("C", own={**settings, "llava-cudnn_attention": wanted})
    host.completions("Only text.")
    assert calls == []  # a host that shows no picture is left as it is
    monkeypatch.setattr(type(parts.language), "device", torch.device(device))
    host.extension.custom_tokenized_length(f"See {tag(picture())}")
    assert calls == switched


# when it can't be


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("ui", [True, False])
def test_without_a_model_nothing_breaks(age: str, ui: bool, start: Start) -> None:
    host = start(age, model=None, ui=ui)
    extension = host.extension
    assert extension.input_modifier("Text alone.", {}) == "Text alone."
    assert extension.state_modifier({"history": {}}) == {"history": {}}
    assert extension.custom_tokenized_length(f"See {tag(picture())}") is None
    with pytest.raises(Exception, match=r"no model is loaded, .* load one in the Model tab"):
        extension.input_modifier(f"See {tag(picture())}")
    if ui:
        field(host)[0].fire("upload", picture())
        with pytest.raises(Exception, match="no model is loaded"):
            extension.chat_input_modifier("x", "x", {})
        assert extension.input_hijack["state"] is True  # the picture waits for a model


def test_without_a_model_a_picture_of_the_chat_api_is_answered_with_a_sentence(start: Start) -> None:
    host = start("C", model=None, ui=False)
    url = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with pytest.raises(host.invalid, match="no model is loaded"):
        host.api_chat([{"role": "user", "content": [{"type": "text", "text": "What?"}, url]}])


@pytest.mark.parametrize("age", AGES)
def test_without_a_page_pictures_are_seen_too(age: str, start: Start, parts: Parts) -> None:
    host, image = start(age, ui=False), tag(picture())
    host.completions(f"See {image}")
    assert_saw(host, parts, "See", rows_of(image, parts))


class LlamaServer:
    """A loader that never asks the extension for embeddings."""


@pytest.mark.parametrize("age", AGES)
def test_a_loader_without_embeddings_is_told_before_it_reads_letters(age: str, start: Start) -> None:
    host = start(age, model=LlamaServer())
    host.shared.args.loader = "llama.cpp"
    with pytest.raises(
        Exception, match=r"loader llama\.cpp takes no embeddings\. Load the model with the Transformers loader"
    ):
        host.extension.input_modifier(f"See {tag(picture())}")
    with pytest.raises(Exception, match="Transformers loader"):
        host.extension.custom_tokenized_length("<__media__>\n\nWhat?")
    assert host.extension.input_modifier("Text alone.") == "Text alone."
    assert (
        host.extension.input_modifier("Text alone.", {"messages": [{"role": "user", "content": "Hi"}]}) == "Text alone."
    )


def test_a_model_with_sight_of_its_own_is_left_alone_but_for_tags(start: Start) -> None:
    host = start("C", model=LlamaServer())
    host.shared.is_multimodal = True
    assert host.extension.custom_tokenized_length("<__media__>\n\nWhat?") is None
    assert host.extension.input_modifier("What?", {"raw_images": [picture()]}) == "What?"
    with pytest.raises(Exception, match="sight of its own"):
        host.extension.input_modifier(f"See {tag(picture())}", {})


def test_a_model_of_another_width_is_named_with_the_setting_that_helps(
    start: Start, parts: Parts, settings: dict[str, Any], tmp_path: Any
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    torch.save(
        {"model.mm_projector.weight": torch.zeros(48, 32), "model.mm_projector.bias": torch.zeros(48)}, other / "p.bin"
    )
    host = start("C", own={**settings, "llava-projector_repo": str(other), "llava-projector_filename": "p.bin"})
    with pytest.raises(
        Exception, match=r"rows of 48, the model tiny-llava-13b-v0 takes rows of 64: set llava-checkpoint"
    ):
        host.completions(f"See {tag(picture())}")


@pytest.mark.parametrize("age", AGES)
def test_a_chat_is_told_of_damaged_eyes_in_the_same_words_as_a_completion(
    age: str, start: Start, settings: dict[str, Any], tmp_path: Any
) -> None:
    (tmp_path / "p.bin").write_bytes(b"PK\x03\x04 cut")
    own = {**settings, "llava-projector_repo": str(tmp_path), "llava-projector_filename": "p.bin"}
    said = []
    for ask in ("completions", "chat"):
        with pytest.raises(Exception, match=r"p\.bin") as raised:
            getattr(start(age, own=own), ask)(f"See {tag(picture())}")
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_errors_reach_the_page_and_the_api_in_their_own_shape(start: Start) -> None:
    host = start("C")
    with pytest.raises(host.invalid) as raised:
        host.completions('See <img src="data:image/png;base64,AAAA">')
    assert isinstance(raised.value, host.gradio.Error)
    assert raised.value.code == 400
    assert raised.value.message == str(raised.value)


def test_a_broken_picture_of_the_chat_api_is_an_error_and_not_left_out(start: Start) -> None:
    host = start("C")
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(host.invalid, match=r"messages\[0\].content\[1\]"):
        host.api_chat([{"role": "user", "content": [{"type": "text", "text": "What?"}, url]}])


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_a_picture_in_a_message_of_no_user_is_answered_with_its_place(role: str, start: Start) -> None:
    """The host itself trips over such a message, with a 500 that names nothing."""
    host, uri = start("C"), box(picture())["image_data"]
    shown = {"role": role, "content": [{"type": "image_url", "image_url": {"url": uri}}]}
    with pytest.raises(host.invalid, match=r"messages\[1\].content\[0\]: .*user's messages alone"):
        host.api_chat([{"role": "user", "content": "Draw."}, shown, {"role": "user", "content": "What?"}])


class Multimodal:
    """The host's own extension of 2025: whatever came before it, a JPEG's tag becomes rows of its own."""

    multimodal_embedder = None

    def tokenizer_modifier(self, state: Any, prompt: str, input_ids: Any, input_embeds: Any) -> Any:
        if '<img src="data:image/jpeg;base64,' not in prompt:
            return prompt, input_ids, input_embeds
        return prompt, torch.ones(1, 5, dtype=torch.int64), torch.ones(1, 5, 64)


@pytest.mark.parametrize("place", ["before", "others"])
def test_beside_the_host_s_own_multimodal_extension_ours_sees_in_either_order(
    place: str, start: Start, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    host, image = start("B"), tag(picture())
    getattr(host, place).append((Multimodal(), "multimodal"))
    host.completions(f"See {image}")
    assert_saw(host, parts, "See", rows_of(image, parts))
    assert "the extension multimodal is switched on too" in caplog.text


def test_embeddings_of_an_extension_that_nobody_knows_are_told_and_not_lost(start: Start) -> None:
    from types import SimpleNamespace

    host = start("B")
    softly = SimpleNamespace(tokenizer_modifier=lambda state, prompt, ids, embeds: (prompt, ids, torch.zeros(1, 1, 64)))
    host.before.append((softly, "soft"))
    with pytest.raises(Exception, match="another extension has put embeddings into this prompt"):
        host.completions(f"See {tag(picture())}")


def test_a_soft_prompt_and_a_picture_are_refused_together(start: Start, parts: Parts) -> None:
    host = start("A", soft_prompt=True)
    with pytest.raises(Exception, match="clear the soft prompt"):
        host.extension.tokenizer_modifier(
            host.state(), f"See {tag(picture())}", torch.tensor([[1]]), torch.zeros(1, 1, 64)
        )


def test_a_swapped_model_gets_its_own_eyes(start: Start, parts: Parts) -> None:
    host = start("C")
    host.completions(f"See {tag(picture())}")
    host.shared.model_name = "another"
    host.extension.params.update(projector_repo=None, projector_filename=None)
    with pytest.raises(Exception, match="no tower and projector are known to fit another"):
        host.completions(f"See {tag(picture())}")


@pytest.mark.parametrize("age", AGES)
def test_without_trifocal_the_host_still_starts(age: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "trifocal.webui.hooks", None)
    host = start(age)
    assert host.extension.params == {}
    assert not hasattr(host.extension, "tokenizer_modifier")


# messages that are longer than the context, pictures that are none, marks that meet


def broken(kind: str) -> str:
    """Data of a picture that is none: no image at all, one that was cut off, one whose letters are no base64."""
    whole = encoded(picture())
    return {"words": base64.b64encode(b"no picture").decode(), "cut": whole[: len(whole) // 2], "letters": "@@@@"}[kind]


@pytest.mark.parametrize("age", ["B", "C"])
def test_every_beginning_of_a_message_has_a_length_that_grows_with_it(age: str, start: Start) -> None:
    host = start(age)
    message = f"What is this?\n{tag(picture(size=(20, 14)))}\nTell me."
    lengths = []
    for end in range(len(message) + 1):
        prompt = f"USER: {message[:end]}\nASSISTANT:"
        counted = host.extension.custom_tokenized_length(prompt)
        lengths.append(len(host.encode(prompt)[0]) if counted is None else counted)
    within = range(message.index("data:") + 5, message.index(">") + 1)
    assert {lengths[end] for end in within} <= {lengths[within[-1]], lengths[within[-1]] + 1}  # a quote is a letter
    assert max(lengths) == lengths[-1]


@pytest.mark.parametrize("age", ["B", "C"])
def test_a_message_that_overflows_is_cut_at_its_start_and_keeps_its_picture(
    age: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    host, image = start(age), tag(picture())
    host.chat(f"{'word ' * 60}{image}\nWhat?", truncation_length=108)
    ids = host.generated[-1]["inputs"][0].tolist()
    assert len(ids) <= 100
    assert ids.count(PATCH) == PATCHES
    assert ids[-len("What?\nASSISTANT:") :] == letters("What?\nASSISTANT:")
    assert "left out of the prompt" in caplog.text


def test_an_attached_picture_without_words_is_refused_where_it_does_not_fit(start: Start) -> None:
    host = start("C")
    with pytest.raises(host.invalid, match=r"longer than the 12 positions.*picture would be left out"):
        host.chat("", files=[box(picture())], truncation_length=20)


@pytest.mark.parametrize("age", ["B", "C"])
def test_a_message_whose_own_picture_would_be_cut_off_is_refused(age: str, start: Start) -> None:
    host = start(age)
    with pytest.raises(Exception, match=r"longer than the 100 positions.*picture would be left out"):
        host.chat(f"{tag(picture())}\n{'word ' * 60}What?", truncation_length=108)


def test_an_attached_picture_s_long_message_keeps_its_question(start: Start, parts: Parts) -> None:
    host, drawn = start("C"), picture()
    host.chat("word " * 60 + "<image> What?", files=[box(drawn)], truncation_length=108)
    made = host.generated[-1]
    assert made["inputs"][0].tolist().count(PATCH) == PATCHES
    assert made["inputs"][0].tolist()[-len("What?\nASSISTANT:") :] == letters("What?\nASSISTANT:")


def test_a_message_that_was_cut_by_others_within_its_tag_is_told_the_reason(start: Start) -> None:
    host, image = start("C"), tag(picture())
    state = host.state()
    host.hook("custom_generate_chat_prompt", f"What?\n{image}", state, history=state["history"])
    with pytest.raises(Exception, match=r"longer than the 2040 positions.*lower max_new_tokens"):
        host.generate(f"USER: What?\n{image[:200]}\nASSISTANT:", state)


def test_a_tag_that_its_user_did_not_close_is_still_said_to_be_so(start: Start) -> None:
    host = start("C")
    with pytest.raises(Exception, match="not closed"):
        host.chat(f"What?\n{tag(picture())[:200]}")


@pytest.mark.parametrize("kind", ["words", "cut", "letters"])
@pytest.mark.parametrize("every", [False, True])
def test_a_broken_picture_of_an_earlier_message_is_left_out_and_told(
    kind: str, every: bool, start: Start, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    host, drawn = start("C"), picture()
    host.extension.params["add_all_images_to_prompt"] = every
    bad = {**box(drawn), "image_data": f"data:image/png;base64,{broken(kind)}", "name": "bad.png"}
    with pytest.raises(host.invalid, match=r"bad\.png"):  # the message that brings it
        host.chat("What?", files=[bad])
    history = {"internal": [["What?", ""]], "visible": [["What?", ""]], "metadata": {"user_0": {"attachments": [bad]}}}
    with pytest.raises(host.invalid, match=r"bad\.png"):  # the same again
        host.chat("", regenerate=True, history=history)
    caplog.clear()
    host.chat("And now?", history=history)
    assert PATCH not in host.generated[-1]["inputs"]
    assert "earlier message was left out: bad.png" in caplog.text
    host.chat("And this?", files=[box(drawn)], history=history)
    assert host.generated[-1]["inputs"][0].tolist().count(PATCH) == PATCHES


@pytest.mark.parametrize("age", AGES)
def test_a_broken_tag_of_an_earlier_message_is_left_out_and_told(
    age: str, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    host = start(age)
    bad = f'<img src="data:image/png;base64,{broken("words")}">'
    with pytest.raises(Exception, match="tag 1"):
        host.chat(f"What?\n{bad}")
    turns = [[f"What?\n{bad}", "No idea."]]
    if age == "A":
        host.shared.history["internal"] += turns
        host.shared.history["visible"] += turns
        host.chat("And now?")
    else:
        host.chat("And now?", history={"internal": turns, "visible": turns})
    assert "And now?" in host.generated[-1]["prompt"]
    assert "earlier message was left out" in caplog.text


def test_only_what_is_shown_is_decoded_and_that_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    host, decoded = start("B"), []
    really = PIL.Image.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        decoded.append(file)
        return really(file, *args, **kwargs)

    turns = [[f"Q{i}\n{tag(picture('green', (40 + i, 40)))}", f"A{i}"] for i in range(3)]
    newest = tag(picture("green", (51, 40)))
    monkeypatch.setattr(PIL.Image, "open", counting)
    host.chat(f"Last?\n{newest}", history={"internal": turns, "visible": turns}, truncation_length=130)
    assert len(decoded) == 1


def test_attached_pictures_stand_where_their_message_says_image(start: Start, parts: Parts) -> None:
    host = start("C")
    host.extension.params["add_all_images_to_prompt"] = True
    red, blue = picture("red"), picture("blue")
    rows = [rows_of(tag(drawn), parts) for drawn in (red, blue)]
    host.chat("What is <image> here?", files=[box(red)])
    assert_saw(host, parts, "USER: What is", rows[0], "here?\nASSISTANT:")
    host.chat("What is <image> beside <image>?", files=[box(red), box(blue)])
    assert_saw(host, parts, "USER: What is", rows[0], "beside", rows[1], "?\nASSISTANT:")
    host.chat("Like it, is <image> red?", files=[box(red), box(blue)])
    assert_saw(host, parts, "USER:", rows[0], "Like it, is", rows[1], "red?\nASSISTANT:")


def test_image_in_a_message_without_pictures_is_letters(start: Start, parts: Parts) -> None:
    host, drawn = start("C"), picture()
    history = {
        "internal": [["What?", "A word: <image>."]],
        "visible": [["What?", "A word: <image>."]],
        "metadata": {"user_0": {"attachments": [box(drawn)]}},
    }
    host.chat("And <image>?", history=history)
    said = "What?\nASSISTANT: A word: <image>.\nUSER: And <image>?\nASSISTANT:"
    assert_saw(host, parts, "USER:", rows_of(tag(drawn), parts), said)


def test_the_chat_api_places_its_pictures_too(start: Start, parts: Parts) -> None:
    host, drawn = start("C"), picture()
    url = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(drawn)}"}}
    host.api_chat([{"role": "user", "content": [{"type": "text", "text": "What is <image> here?"}, url]}])
    assert_saw(host, parts, "USER: What is", rows_of(tag(drawn), parts), "here?\nASSISTANT:")


def asked_over(text: str, *drawn: PIL.Image.Image) -> dict[str, Any]:
    urls = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(one)}"}} for one in drawn]
    return {"role": "user", "content": [*urls, {"type": "text", "text": text}]}


@pytest.mark.parametrize("every", [False, True])
def test_the_chat_api_of_2025_shows_a_picture_once_where_the_host_wrote_it(
    every: bool, start: Start, parts: Parts
) -> None:
    host, drawn = start("B"), picture()
    host.extension.params["add_all_images_to_prompt"] = every
    host.api_chat([asked_over("What?", drawn)])
    assert_saw(host, parts, "USER:", rows_of(tag(drawn), parts), "ASSISTANT: \nUSER: What?\nASSISTANT:")


def test_a_question_of_2025_s_chat_api_is_not_answered_without_its_picture(start: Start) -> None:
    host, drawn = start("B"), picture()
    question = asked_over("y" * 30, drawn)
    with pytest.raises(Exception, match=r"longer than the 52 positions .* its picture would be left out"):
        host.api_chat([question], truncation_length=60, max_new_tokens=8)
    assert not host.generated
    answered = [question, {"role": "assistant", "content": "Red."}, {"role": "user", "content": "y" * 30}]
    host.api_chat(answered, truncation_length=60, max_new_tokens=8)
    assert "inputs_embeds" not in host.generated[-1]  # the picture is an earlier question's


def test_both_marks_place_the_pictures_of_one_completion(start: Start, parts: Parts) -> None:
    host = start("C")
    host.extension.params["add_all_images_to_prompt"] = True
    lossless = [PIL.Image.open(io.BytesIO(base64.b64decode(encoded(picture(c))))) for c in ("red", "blue")]
    red, blue = (rows_of(tag(picture(c)), parts) for c in ("red", "blue"))
    host.completions("USER: <__media__> and <image>? ASSISTANT:", raw_images=lossless)
    assert_saw(host, parts, "USER:", red, "and", blue, "? ASSISTANT:")
    host.completions("USER: is <__media__> it? ASSISTANT:", raw_images=lossless)
    assert_saw(host, parts, red, "USER: is", blue, "it? ASSISTANT:")


def test_another_extension_s_chat_prompt_is_asked_too(start: Start, parts: Parts) -> None:
    from types import SimpleNamespace

    host, image = start("C"), tag(picture())
    host.others.append((SimpleNamespace(custom_generate_chat_prompt=lambda text, state, **_: f"OTHER: {text}"), "x"))
    host.chat("Only words.")
    assert host.generated[-1]["prompt"] == "OTHER: Only words."
    host.chat(f"See {image}")
    assert_saw(host, parts, "OTHER: See", rows_of(image, parts))


def test_the_speaker_of_2023_s_chat_is_followed_by_a_space(start: Start) -> None:
    host, image = start("A"), tag(picture())
    host.chat(f"What?\n{image}", mode="chat", name1="### Human", name2="### Assistant")
    assert host.generated[-1]["prompt"].endswith("### Assistant: ")


@pytest.mark.parametrize("age", ["B", "C"])
@pytest.mark.parametrize(
    ("name", "mode", "ends"),
    [("llava_v0_webui", "instruct", True), ("llava_v0_webui", "chat", False), ("llava_v1", "instruct", False)],
)
def test_an_answer_ends_where_a_v0_model_s_turn_does(age: str, name: str, mode: str, ends: bool, start: Start) -> None:
    host = start(age)
    template = exported(TEMPLATES[name])
    state = host.state(mode=mode, instruction_template_str=template, stopping_strings=["END"])
    assert host.extension.state_modifier(state)["stopping_strings"] == ["END", *["\n###"] * ends]


def test_the_shown_message_has_its_picture_where_the_text_has_it_though_v4_escapes_it(start: Start) -> None:
    host = start("C")
    field(host)[0].fire("upload", picture())
    text, shown = host.extension.chat_input_modifier("Is <image> red?", "Is &lt;image&gt; red?", host.state())
    assert shown == text
    assert text.startswith("Is <img src=")
