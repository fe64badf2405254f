"""Settings of the model: networks, objective, optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aalnet.section import Blocks, Count, Positive, Section, Share, Weight, Width, Widths


class NetworkSettings(Section):
    """Sizes of generator and discriminator. `preset` fills what is not given."""

    preset: Literal["tiny", "base", "large"] = Field(
        "tiny",
        description="sizes of the networks: tiny for CPUs and trials, base and large for GPUs",
    )
    blocks: Literal["resnet", "densenet", "inception"] = Field(
        "resnet",
        description="block family of generator and discriminator; resnet is fastest, the others "
        "are for comparison",
    )
    widths: Widths | None = Field(
        None,
        description="channels per level, full size first; each level halves the picture. More "
        "channels: better and slower",
    )
    encoder_blocks: Blocks | None = Field(
        None, description="blocks per level of the encoders; raise it where details of x are lost"
    )
    decoder_blocks: Blocks | None = Field(
        None,
        description="blocks per level of the decoder; it runs K times per condition, so each "
        "costs most",
    )
    embedding_size: Width | None = Field(
        None,
        description="length of the vector that noise and label become; raise it for many labels",
    )
    noise_size: Width = Field(
        32,
        description="Z, the length of one noise vector; raise it where one condition has very "
        "many answers",
    )
    start_from_condition: bool = Field(
        True,
        description="add a learned map of x to the output, so that generation starts from x; "
        "off where y has nothing in common with x",
    )


class ObjectiveSettings(Section):
    """Weights and phases of the objective (docs/objective.md). Each weight may be 0 on its own.

    Models other than aalnet fix some of them (aalnet/corners.py).
    """

    K: Count = Field(
        2,
        description="samples of the prior drawn per condition where entropy or D works; more "
        "estimate both better, each costs a pass of the decoder, and of D",
    )
    lambda_: Weight = Field(
        3.0,
        alias="lambda",
        description="weight of realism, the adversarial term; raise it for more saturated, varied "
        "pictures, lower it if training is unstable",
    )
    lambda_warmup: Share = Field(
        0.5,
        description="first share of D's phase, in which lambda rises from 0: D must learn "
        "something before G heeds it",
    )
    eta: Weight = Field(
        0.5,
        description="weight of entropy, the knob between diversity (higher) and likeness to the "
        "target (lower); 0.5 is the one that is right in expectation",
    )
    beta: Weight = Field(
        0.1,
        description="weight of reward: samples that D finds better than their siblings become "
        "likelier; needs K of 2 or more",
    )
    gamma: Weight = Field(
        1e-6,
        description="weight of the response penalty, which calms G against D; raise it if "
        "losses swing, 0 saves time",
    )
    flatness: Weight = Field(
        1e-5,
        description="weight of the density_flatness penalty, which works against entropy; lower "
        "it if samples are too alike",
    )
    offset_share: Weight = Field(
        0.01,
        description="offset, which holds the encoders of G and D together, has the weight eta * "
        "offset_share; 0 leaves them apart",
    )
    scale: Positive = Field(
        0.1,
        description="b, the width of the Laplace kernels, in units of the image range [-1, 1]; "
        "1/b is the L1 weight. Smaller: closer to the target",
    )
    width: Annotated[float, Field(ge=1, le=1000)] = Field(
        100.0,
        description="w, by how much kernels of several samples are widened: 1 is the article's "
        "mixture, where the nearest sample decides; wide lets each count",
    )
    proposal: bool = Field(
        True,
        description="estimate the likelihood by a code of q(z|x, c, y), learned beside G; off: by "
        "samples of the prior alone, which learns far more slowly",
    )
    kl: Weight = Field(
        0.02,
        description="weight of the KL divergence of q to the prior; raise it if samples of the "
        "prior are poor, lower it if all are alike",
    )
    kl_warmup: Share = Field(
        0.15, description="first share of the run, in which kl rises from 0; more if runs go silent"
    )
    ignition_images: Annotated[int, Field(ge=0)] = Field(
        2500,
        description="first images, in which samples of the prior work too: it keeps networks from "
        "going silent",
    )
    entropy_from: Share = Field(
        0.7,
        description="share of the run from which K samples of the prior work: likelihood, entropy "
        "and density_flatness. 1: never after ignition",
    )
    adversary_from: Share = Field(
        1.0,
        description="share of the run from which D works: realism, reward, response and offset. 1: "
        "never, the default, for in short runs D cost more than it gave (docs/comparison.md); try "
        "0.85 in long ones",
    )
    judges_proposal: bool = Field(
        False, description="let D judge the sample of q's code too; the vae-gan always does"
    )
    relativistic: bool = Field(
        True,
        description="D compares samples with the target; off: it judges each alone, as a classical "
        "GAN, and the gan and vae-gan always do",
    )
    code_recovery: Weight = Field(
        0.5,
        description="vae-gan: weight of reading a sample's code again from the sample (BicycleGAN)",
    )
    r1: Weight = Field(
        0.5,
        description="weight of the discriminator's gradient penalty at real and generated "
        "images; raise it if D wins too soon",
    )
    r1_interval: Count = Field(
        16, description="steps between two such penalties; 1 is steadiest and slowest"
    )
    penalty_method: Literal["finite_difference", "exact"] = Field(
        "finite_difference",
        description="how gradient penalties of G are differentiated; exact: double backward, "
        "more memory, to check numbers",
    )
    penalty_interval: Count = Field(
        16,
        description="steps between two gradient penalties of G, whose weight is scaled by it; "
        "more is faster and coarser",
    )
    penalty_step: Positive = Field(
        5e-4,
        description="h, the relative step of the central differences; change it only where they "
        "differ from exact",
    )


class OptimizerSettings(Section):
    """How gradients become steps. Schedules count images, so workers do not move them."""

    name: Literal["adam", "sgd"] = Field(
        "adam", description="optimizer of G and of D; sgd is for experiments"
    )
    lr: Positive = Field(
        1e-3,
        description="learning rate after warm-up; lower it if a term is not finite or losses "
        "swing, raise it with the batch",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5,
        description="adam: decay per step of the mean gradient, its momentum; 0 suits an "
        "adversary, 0.9 plain likelihood",
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99,
        description="adam: decay per step of the mean squared gradient; nearer to 1: steadier "
        "steps, slower to adapt",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9,
        description="sgd: share of the last step that goes into the next; lower it if losses swing",
    )
    warmup_images: Annotated[int, Field(ge=0)] = Field(
        2400,
        description="images over which the learning rate rises from 0; raise it if a run fails "
        "at its start",
    )
    decay_share: Share = Field(
        0.3,
        description="last share of the run, in which the learning rate falls to 0; 0 keeps it, "
        "for runs that are to go on",
    )
    clip_norm: Positive = Field(
        1.0,
        description="largest norm of the gradient summed over workers; larger ones are scaled "
        "to it. Lower it against jumps",
    )
    ema_halflife_images: Positive = Field(
        5000.0,
        description="images after which a weight counts half in the moving average that samples "
        "come from; shorter for short runs",
    )
