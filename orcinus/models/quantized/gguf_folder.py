"""`python -m orcinus.models.quantized.gguf_folder FILE FOLDER`: what a checkpoint has beside weights, from a GGUF.

Through `transformers`, which knows how llama.cpp writes configurations and tokenizers. In a process of its own, since
what serves HTTP never loads torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# No file on this machine may be completed from elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def main() -> None:
    """Write the folder; a complaint on the last line of stderr and exit code 1 if it can't be."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    if config.model_type not in _ARCHITECTURES:
        sys.exit(f"{config.model_type} isn't read from GGUF, only {', '.join(_ARCHITECTURES)}; use the safetensors")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    tokenizer.save_pretrained(folder)
    values = json.loads(config.to_json_string(use_diff=False))
    values["architectures"] = [_ARCHITECTURES[config.model_type]]
    values["quantization_config"] = {"quant_method": "gguf"}
    values["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(values, indent=2))


if __name__ == "__main__":
    main()
