from . import recipes as recipes
from .adapters.bank import bank_of as bank_of
from .adapters.config import AdapterConfig as AdapterConfig
from .adapters.config import ContinualConfig as ContinualConfig
from .adapters.load import load_policy as load_policy
from .config import DemosConfig as DemosConfig
from .config import EvalConfig as EvalConfig
from .config import OptimizerConfig as OptimizerConfig
from .config import RolloutConfig as RolloutConfig
from .config import SamplingConfig as SamplingConfig
from .config import SFTConfig as SFTConfig
from .config import SuiteConfig as SuiteConfig
from .config import TrainConfig as TrainConfig
from .demonstrations.dataset import LeRobotDataset as LeRobotDataset
from .demonstrations.generate import generate as generate
from .demonstrations.recorder import Recorder as Recorder
from .errors import UserError as UserError
from .evaluation.evaluate import evaluate as evaluate
from .runs import continual as continual
from .runs import novelty_of as novelty_of
from .runs import novelty_of_run as novelty_of_run
from .runs import sft as sft
from .runs import train as train
from .runs import write_report as write_report
from .suites.registry import make_suite as make_suite
from .types import Observation as Observation

__version__: str
