"""One GRPO step by trl's GRPOTrainer, its phases timed.

trl takes prompts as text, so the tokenizer here has one word a token (``t5`` is id 5): prompts of exactly S tokens on
any model, real or random. The end token is kept from being drawn (``min_new_tokens``), so that every completion has
exactly T tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from r2rec_jax.bench.inputs import prompts, reward, text_of
from r2rec_jax.bench.presets import SEED, TEMPERATURE, TOP_P
from r2rec_jax.bench.timing import timed

if TYPE_CHECKING:
    from r2rec_jax.bench.pytorch import PyTorch


def word_tokenizer(vocab: int, end_id: int) -> Any:
    """A tokenizer whose token ``i`` is the word ``t{i}``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"t{end_id}", pad_token="t0")


def even_share(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """The reward as trl calls it."""
    return list(reward(completions))


class GrpoWork:
    """A trainer with passes of ``micro`` completions that is asked for one step at a time."""

    def __init__(self, side: PyTorch, micro: int) -> None:
        self.side, self.shape, self.micro = side, side.preset.grpo.decoding, micro
        self.end_id = 2
        self.tokenizer = word_tokenizer(side.vocab, self.end_id)
        self.folder = tempfile.TemporaryDirectory()
        self.laps: dict[str, float] = {}
        self.trainer = self._trainer()

    def _trainer(self) -> Any:
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        side, shape, micro = self.side, self.shape, self.micro
        side.model.generation_config.eos_token_id = self.end_id
        settings = GRPOConfig(
            output_dir=self.folder.name, per_device_train_batch_size=micro,
            gradient_accumulation_steps=shape.rows // micro, num_generations=shape.group, max_steps=1,
            max_completion_length=shape.new_tokens, temperature=TEMPERATURE, top_p=TOP_P, top_k=0, beta=0.04,
            loss_type="grpo", scale_rewards="group", learning_rate=1e-5, lr_scheduler_type="constant",
            generation_kwargs={"min_new_tokens": shape.new_tokens}, gradient_checkpointing=False,
            use_cpu=not side.on_gpu, bf16=side.preset.dtype == "bfloat16", shuffle_dataset=False, seed=SEED,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True)
        asked = [text_of(ids) for ids in prompts(shape, side.vocab, "grpo")]
        trainer = GRPOTrainer(
            model=side.model, reward_funcs=even_share, args=settings, processing_class=self.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": asked}), callbacks=[_step_clock(self.laps, side.wait)])
        for name, method in (("rollout", "_generate"), ("reward", "_calculate_rewards"),
                             ("prepare", "_generate_and_score_completions")):
            self._time(trainer, method, name)
        return trainer

    def _time(self, trainer: Any, method: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(trainer, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            def call() -> Any:
                with self.side.precision():  # accelerate puts the training passes alone under autocast
                    out = inner(*args, **kwargs)
                self.side.wait()
                return out

            seconds, out = timed(call)
            self.laps[name] = self.laps.get(name, 0.0) + seconds
            return out

        setattr(trainer, method, outer)

    def step(self) -> dict[str, float]:
        """Seconds of rollout, rewards, reference and update; building a training loop is not counted."""
        self.laps.clear()
        self.trainer.train()
        laps = self.laps
        return {"rollout_seconds": laps["rollout"], "reward_seconds": laps["reward"],
                "reference_seconds": laps["prepare"] - laps["rollout"] - laps["reward"],
                "update_seconds": laps["step"] - laps["prepare"], "seconds": laps["step"]}


def _step_clock(laps: dict[str, float], wait: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            laps["step"] = laps.get("step", 0.0) + time.perf_counter() - self.started

    return StepClock()
