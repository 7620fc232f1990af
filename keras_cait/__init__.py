"""CaiT (Going deeper with Image Transformers, ICCV 2021) for Keras 3."""

from keras_cait import startup  # first: it explains imports that fail
from keras_cait.attention_maps import (
    class_attention_maps,
    intermediate_features,
    saliency_maps,
)
from keras_cait.baselines import ViT  # Keras loads its files only then
from keras_cait.blocks import ClassAttentionBlock, SelfAttentionBlock
from keras_cait.distribution import layout_map
from keras_cait.explanations import occlusion_maps, relevance_maps
from keras_cait.layers import (
    MLP,
    ClassAttention,
    ClassToken,
    LayerScale,
    PatchEmbedding,
    PositionEmbedding,
    TalkingHeadsAttention,
)
from keras_cait.models import (
    VARIANTS,
    CaiT,
    CaiT_M24,
    CaiT_M36,
    CaiT_M48,
    CaiT_S24,
    CaiT_S36,
    CaiT_S48,
    CaiT_XS24,
    CaiT_XS36,
    CaiT_XXS24,
    CaiT_XXS36,
)
from keras_cait.optimizers import SGD, AdamW, WarmupCosine, freeze
from keras_cait.preprocessing import (
    decode_predictions,
    load_image,
    preprocess_input,
)
from keras_cait.pretrained import PRETRAINED
from keras_cait.version import __version__
from keras_cait.weights import (
    CHECKPOINTS,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
