"""What a model that is composed of models of transformers must ask of it."""


class ComposedModelMixin:
    """For a `PreTrainedModel` whose parts come from `AutoModel`; it comes before it among the bases."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: the shortcut that loading takes for code outside of transformers skips what another module fills.

        Buffers of a part (FalconH1's), weights that a parent sets for its children, and heads that take what is
        missing from their base model would stay as memory was.
        """
        return False

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs) -> None:
        """As transformers' own, under the names that the model has.

        By default transformers writes the names that some of its parts (ViT among them) had before; they load, but
        `Trainer` does not find the weights again when it resumes.
        """
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)
