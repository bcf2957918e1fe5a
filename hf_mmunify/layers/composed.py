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

    def post_init(self) -> None:
        """As transformers' own; of what must not be split it keeps the names of layers that this model has.

        Parts name layers of their whole family (CLIP's vision tower the text embeddings), heads those of the whole
        model, but FSDP, which divides a model by these names, stops at one that is not in it.
        """
        super().post_init()
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs) -> None:
        """As transformers' own, under the names that the model has.

        By default transformers writes the names that some of its parts (ViT among them) had before; they load, but
        `Trainer` does not find the weights again when it resumes.
        """
        super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)
