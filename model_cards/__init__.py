"""The card of each architecture, as Markdown; `hf_mmunify.hub.architecture_card` reads them."""
