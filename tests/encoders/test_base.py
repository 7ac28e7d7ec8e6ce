from types import SimpleNamespace

from featstore.encoders.base import checkpoint_options


def test_a_checkpoint_is_named_with_the_clip_model_it_was_given():
    """Without it the command that a model prints would not find the tower, or make other features."""
    encoder = SimpleNamespace(origin="my checkpoint", vision_tower=None)
    assert checkpoint_options(encoder) == "--model-path 'my checkpoint'"
    encoder.vision_tower = "/clip"
    assert checkpoint_options(encoder) == "--model-path 'my checkpoint' --vision-tower /clip"
    assert checkpoint_options(SimpleNamespace(origin="toy")) == "--model-path toy"
