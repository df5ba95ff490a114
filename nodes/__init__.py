"""The nodes: a list of plain classes. Adding one means a file (or a class in one) and its name here."""

from .autoencoder import AESOPAutoEncoder, AEView
from .candidates import SampleCandidates, ScoreCandidates
from .compare import Compare, Spectrum
from .condition import EmptyConditioning, LoadVLM, TextEncode, VLMEncode
from .degrade import Degrade
from .discriminator import LoadDiscriminator
from .evaluate import EvaluateFolders
from .folder import LoadImageFolder
from .host import register_model_folder
from .lora import LoadLoRA, MergeAdapters, MergeLoRA, SaveLoRA
from .losses import AESOPLoss, ArtifactLoss, GANLoss, PerceptualLoss, PixelLoss
from .losses_one_step import FDLLoss, GridLoss, LPIPSLoss, RaGANLoss
from .models import LoadSRModel
from .multi_step import LoadMultiStepBackbone
from .multi_step_sampling import MultiStepSR
from .one_step import LoadOneStepBackbone
from .perturbation import PerturbationViewer
from .preferences import CuratePreferences, CurationStudy
from .report import SaveReport
from .restore import ColorFix, OneStepSR
from .score import IQAReward
from .seeds import CompareSeeds
from .sobolev import SobolevNorm
from .train import TrainSRNetwork
from .train_dpo import PerceptualDPOTrainer
from .train_flow import AdversaryTrainer, ArtefactFolder, SFTTrainer
from .train_one_step import OneStepTrainer
from .train_perceptual import TrainAutoEncoder, TrainPerceptualSR
from .train_sobolev import SobolevDPOTrainer
from .user_study import MakeVotingPages, ReadVotes

PREFIX = "AlignSR"  # node ids are a contract with every saved workflow: prefix and class name never change
NODES: dict[type, str] = {
    LoadSRModel: "Load SR Model",
    Degrade: "Degrade",
    OneStepSR: "One-Step SR",
    ColorFix: "Colour Fix",
    IQAReward: "IQA Reward",
    EvaluateFolders: "Evaluate Folders",
    Compare: "Compare",
    Spectrum: "Spectrum",
    SaveReport: "Save Report",
    LoadImageFolder: "Load Image Folder",
    MakeVotingPages: "Make Voting Pages",
    ReadVotes: "Read Votes",
    TrainSRNetwork: "Train SR Network",
    AESOPAutoEncoder: "AESOP Auto-Encoder",
    AEView: "Auto-Encoder View",
    PixelLoss: "Pixel Loss",
    AESOPLoss: "AESOP Loss",
    ArtifactLoss: "Artifact Loss",
    PerceptualLoss: "Perceptual Loss",
    GANLoss: "GAN Loss",
    TrainAutoEncoder: "Train Auto-Encoder",
    TrainPerceptualSR: "Train Perceptual SR",
    LoadOneStepBackbone: "Load One-Step Backbone",
    LoadLoRA: "Load LoRA",
    MergeLoRA: "Merge LoRA",
    SaveLoRA: "Save LoRA",
    LoadVLM: "Load VLM",
    VLMEncode: "VLM Encode",
    TextEncode: "Text Encode",
    EmptyConditioning: "Empty Conditioning",
    LPIPSLoss: "LPIPS Loss",
    RaGANLoss: "RaGAN Loss",
    FDLLoss: "FDL Loss",
    GridLoss: "Grid Loss",
    LoadDiscriminator: "Load Discriminator",
    OneStepTrainer: "One-Step Trainer",
    SampleCandidates: "Sample Candidates",
    ScoreCandidates: "Score Candidates",
    CuratePreferences: "Curate Preferences",
    CurationStudy: "Curation Study",
    LoadMultiStepBackbone: "Load Multi-Step Backbone",
    MultiStepSR: "Multi-Step SR",
    SobolevDPOTrainer: "Sobolev DPO Trainer",
    MergeAdapters: "Merge Adapters",
    SobolevNorm: "Sobolev Norm",
    PerturbationViewer: "Perturbation Viewer",
    PerceptualDPOTrainer: "Perceptual DPO Trainer",
    CompareSeeds: "Compare Seeds",
    SFTTrainer: "SFT Trainer",
    AdversaryTrainer: "Adversary Trainer",
    ArtefactFolder: "Artefact Folder",
}
NODE_CLASS_MAPPINGS: dict[str, type] = {f"{PREFIX}{node.__name__}": node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {f"{PREFIX}{node.__name__}": f"{title} (AlignSR)" for node, title in NODES.items()}

register_model_folder()  # models/alignsr must be known before ComfyUI lists the inputs of Load SR Model
