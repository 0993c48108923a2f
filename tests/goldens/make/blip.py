"""Golden for `tests/models/blip.rs`: transformers' `BlipForConditionalGeneration` on random weights under the names of the published
file, what it says of pictures by greedy search, and how BERT's tokenizer spells it.

    config.json, model.safetensors, vocab.txt  a folder of transformers; the decoder begins with a token that is in no vocabulary, as in
                       the published one
    cases.safetensors  `picture.N` in bytes; of the first one `pixels`, `states` of the image and `logits` of all tokens that were
                       found, and the same of two pictures at once as `both.*`
    captions.json      of every picture the tokens and the text; and lists of tokens with their text
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

FOLDER = Path(__file__).parent.parent / "blip"
WORDS = """[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] ! , . ? ' a n s t do not don m ve re the of on in with and two cat ##s dog ##gy beach red hat
stand ##ing sit ##ting wave ##let water ##melon é ##é boat house 8 ##mm tree""".split()
VISION = {
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
TEXT = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": 20,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 22,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "bos_token_id": len(WORDS),
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sep_token_id": WORDS.index("[SEP]"),
}

torch.manual_seed(7)
torch.set_num_threads(1)
FOLDER.mkdir(exist_ok=True)
(FOLDER / "vocab.txt").write_text("\n".join(WORDS) + "\n")
config = BlipConfig(text_config=TEXT, vision_config=VISION)
model = BlipForConditionalGeneration(config).eval()
with torch.no_grad():
    for name, weight in model.named_parameters():
        # What is said shall depend on the picture and on what was said before.
        spread = 0.15 if weight.dim() == 1 else 1.0 if "embedding" in name else 2.2 / weight[0].numel() ** 0.5
        weight.copy_(torch.randn(weight.shape) * spread + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0))
    # The end comes after a few tokens, not at once.
    model.text_decoder.cls.predictions.bias[TEXT["sep_token_id"]] += 3.0
processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
random = np.random.default_rng(3)
cases, captions, lengths = {}, [], set()
with torch.no_grad():
    for number in range(40):
        size = (21 + number % 5, 33 + number % 7)
        low = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        picture = np.array(Image.fromarray(low).resize((size[1], size[0]), Image.BICUBIC))
        pixels = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
        tokens = model.generate(pixels, max_length=20, do_sample=False, num_beams=1)[0]
        # Two that end by themselves at different lengths, and one that is cut.
        kind = len(tokens) if tokens[-1] == TEXT["sep_token_id"] else 0
        if kind in lengths or 0 < kind < 4 or (kind and len(lengths - {0}) == 2):
            continue
        lengths.add(kind)
        index = len(captions)
        cases[f"picture.{index}"] = torch.from_numpy(picture)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        captions.append({"tokens": tokens.tolist(), "text": text})
        if index == 0:
            # Everything but the end, from which nothing follows.
            output = model(pixels, input_ids=tokens[None])
            cases |= {"pixels": pixels, "states": output.last_hidden_state, "logits": output.logits}
            # Each token is far from the next best, so that rounding does not choose.
            best = output.logits[0, :-1].topk(2).values
            assert (best[:, 0] - best[:, 1]).min() > 1e-3, best
        if len(captions) == 3:
            break
    assert len(captions) == 3 and 0 in lengths, lengths
    both = torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[TEXT["bos_token_id"], 11, 30, 9], [TEXT["bos_token_id"], 5, 44, 12]])
    output = model(both, input_ids=ids)
    cases |= {"both.pixels": both, "both.ids": ids.to(torch.uint32), "both.logits": output.logits}
spelled = []
for text in [
    "two cat ##s sit ##ting on the beach .",
    "do not stand in water , dog ##gy !",
    "a dog ' s hat ? 8 ##mm",
    "n ' t the cat ' s , ' ve and ' re ##é é",
    "[CLS] the [UNK] boat [MASK] [unused0] ##s [PAD] [SEP]",
    "##s dog",
]:
    ids = [WORDS.index(word) for word in text.split()]
    spelled.append({"tokens": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)})
weights = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
# transformers 4 also saved the positions' numbers.
weights["text_decoder.bert.embeddings.position_ids"] = torch.arange(TEXT["max_position_embeddings"])[None]
save_file(weights, FOLDER / "model.safetensors")
save_file(cases, FOLDER / "cases.safetensors")
(FOLDER / "captions.json").write_text(json.dumps({"pictures": captions, "spelled": spelled}, ensure_ascii=False, indent=1) + "\n")
(FOLDER / "config.json").write_text(
    json.dumps({"model_type": "blip", "text_config": {"model_type": "blip_text_model"} | TEXT,
                "vision_config": {"model_type": "blip_vision_model"} | VISION}) + "\n")
