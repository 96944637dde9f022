"""Vision-language models: supervised finetuning of any, and the recipe of the embedded one."""
