"""One velocity prediction for a batch of branches, on one process or on many."""

from pipeline.model.transformer.counter import ForwardCounter as ForwardCounter
from pipeline.model.transformer.velocity import VelocityModel as VelocityModel
