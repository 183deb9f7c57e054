"""BERT: an encoder, in which every token sees all others."""

from __future__ import annotations

from orcinus.models.families.family import Family, Keys, TensorNames

BERT = Family(
    model_type="bert",
    architectures={
        "BertModel": "embed",
        "BertForMaskedLM": "embed",
        "BertForPreTraining": "embed",
        "BertForSequenceClassification": "classify",
    },
    names=TensorNames(
        prefixes=("bert.", ""),
        embedding="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        segments="embeddings.token_type_embeddings",
        embedding_norm="embeddings.LayerNorm",
        layer="encoder.layer.{}.",
        qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        mlp_input=("intermediate.dense",),
        mlp_output="output.dense",
        mlp_norm="output.LayerNorm",
        pooler="pooler.dense",
        classifier="classifier",
        older={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        ignored=(
            "embeddings.position_ids",
            *(f"{name}.{part}" for name in ("pooler.dense", "seq_relationship") for part in ("weight", "bias")),
            *(f"predictions.{name}" for name in ("bias", "decoder.weight", "decoder.bias")),
            *(f"predictions.transform.{name}.{part}" for name in ("dense", "LayerNorm") for part in ("weight", "bias")),
        ),
    ),
    keys=Keys(norm_eps="layer_norm_eps", num_segments="type_vocab_size"),
    defaults={
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
    },
    only={"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
    residual="post_norm",
    norm="layer",
    positions="learned",
    gated_mlp=False,
    qkv_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    classifier_bias=True,
    causal=False,
)
