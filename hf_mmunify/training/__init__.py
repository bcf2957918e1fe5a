"""What training with `Trainer` and PEFT still lacks for these architectures."""

from .lora import lora_config, qlora_config
