"""p(x | z_1), one file each; the configuration chooses by `kind`."""

from typing import Annotated

from pydantic import Field

from trainer.likelihoods.base import Likelihood
from trainer.likelihoods.bernoulli import BernoulliConfig
from trainer.likelihoods.discretised import DiscretisedGaussianConfig, DiscretisedLogisticConfig
from trainer.likelihoods.gaussian import GaussianConfig
from trainer.likelihoods.mixture import LogisticMixtureConfig

LikelihoodConfig = Annotated[
    BernoulliConfig | GaussianConfig | DiscretisedLogisticConfig | DiscretisedGaussianConfig | LogisticMixtureConfig,
    Field(discriminator="kind"),
]

__all__ = ["Likelihood", "LikelihoodConfig"]
