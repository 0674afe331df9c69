import pytest
from torch import nn

from ckptrun.config.model import CNNConfig, CustomModelConfig, GPTConfig, MLPConfig, MoEConfig, TensorStyle
from ckptrun.model import CNN, GPT, MLP, MoE, layout_of
from ckptrun.parallelism.naming import matching_modules

_MODELS = [(GPT, GPTConfig()), (MoE, MoEConfig()), (MLP, MLPConfig()), (CNN, CNNConfig())]


@pytest.mark.parametrize(("build", "config"), _MODELS)
def test_every_pattern_of_a_built_in_model_names_modules_of_it(build, config):
    layout, model = layout_of(config), build(config)
    for pattern in (*layout.blocks, *layout.tensor_plan):
        assert matching_modules(model, pattern, key="model")


@pytest.mark.parametrize(("build", "config"), _MODELS)
def test_the_plan_names_linears_and_blocks_hold_all_of_them(build, config):
    layout, model = layout_of(config), build(config)
    blocks = [name for pattern in layout.blocks for name, _ in matching_modules(model, pattern, key="model")]
    for pattern in layout.tensor_plan:
        for name, module in matching_modules(model, pattern, key="model"):
            assert isinstance(module, nn.Linear)
            assert any(f"{name}.".startswith(f"{block}.") for block in blocks)


@pytest.mark.parametrize(
    ("features", "planned"), [([4, 8], 0), ([4, 8, 4], 2), ([4, 8, 8, 4], 2), ([8, 16, 32, 64, 8], 4)]
)
def test_a_layer_of_the_mlp_that_has_no_partner_stays_whole(features, planned):
    plan = layout_of(MLPConfig(features=features)).tensor_plan
    assert list(plan.values()) == [TensorStyle.colwise, TensorStyle.rowwise] * (planned // 2)


def test_a_custom_model_has_the_layout_of_its_config():
    config = CustomModelConfig(blocks=["layers.*"], tensor_plan={"layers.*.up": TensorStyle.colwise})
    layout = layout_of(config)
    assert layout.blocks == ("layers.*",)
    assert dict(layout.tensor_plan) == {"layers.*.up": TensorStyle.colwise}
