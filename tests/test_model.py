import pytest
import torch
from conftest import random_reference, small_model
from safetensors.torch import load_file, save_file

from sance_audio import AudioEBM, LogMel
from sance_audio.assessment import write_clips
from sance_audio.energy import ReferencedEnergy, value_and_grad
from sance_audio.networks import ResidualEnergy
from sance_audio.reference import GaussianReference
from sance_audio.weights import WeightsError


def clips(n: int = 3, length: int = 900) -> torch.Tensor:
    return torch.randn(n, length, generator=torch.Generator().manual_seed(0))


def test_saved_and_loaded_it_is_the_same_model(tmp_path):
    model = small_model()
    model.density.log_z.copy_(torch.tensor([1.0, -2.0, 0.5]))
    path = model.save_pretrained(tmp_path)
    for source in (tmp_path, path):
        again = AudioEBM.from_pretrained(source)
        assert again.labels == ("a", "b", "c")
        assert torch.equal(again.energy(clips(), 4000), model.energy(clips(), 4000))
        assert torch.equal(again.generate(2), model.generate(2))


def test_clip_i_of_a_seed_is_the_same_whatever_the_number():
    model = small_model()
    sixteen = model.generate(16, torch.Generator().manual_seed(5))
    for n in (1, 4, 17, 40):
        few = model.generate(n, torch.Generator().manual_seed(5))
        assert torch.equal(few[:16], sixteen[:n])
    assert not torch.equal(model.generate(4, torch.Generator().manual_seed(6)), sixteen[:4])


def test_generated_clips_are_finite_distinct_and_as_long_as_the_window():
    model = small_model()
    waves = model.generate(6)
    assert waves.shape == (6, model.window) == (6, 64 * 15)
    assert torch.isfinite(waves).all()
    assert torch.pdist(waves).min() > 1e-3
    assert model.classes(5) == [0, 1, 2, 0, 1]
    assert model.classes(2, 1) == [1, 1]


def test_energy_of_one_clip_does_not_depend_on_its_neighbours():
    model = small_model()
    together = model.energy(clips(5), 4000)
    for i in range(5):
        torch.testing.assert_close(
            model.energy(clips(5)[i], 4000)[0], together[i], rtol=1e-5, atol=1e-3
        )


def test_a_longer_clip_is_the_mean_of_its_windows():
    model = small_model()
    long = clips(1, 3 * model.window)[0]
    windows = model.windows(long)
    assert windows.shape == (5, model.window)
    mean = model.energy_of(model.log_mels(windows)).mean()
    torch.testing.assert_close(model.energy(long, 4000)[0], mean)


def test_conditional_energies_add_up_to_the_marginal_one():
    model = small_model()
    x = model.log_mels(clips(4, model.window))
    conditional = torch.stack([-model.energy_of(x, y) for y in range(3)], 1)
    marginal = (conditional + model.reference.class_log_weight()).logsumexp(1)
    torch.testing.assert_close(-model.energy_of(x), marginal, rtol=1e-4, atol=1e-2)
    assert model.classify(x).exp().sum(1).tolist() == pytest.approx([1] * 4)


def test_the_energy_map_sums_to_the_network_s_part():
    model = small_model()
    wave = clips(2, model.window)
    maps = model.energy_map(wave, 4000)
    assert maps.shape == (2, 16, 16)
    x = model.log_mels(torch.cat([model.windows(w) for w in wave]))
    learnt = model.density.network(x + model.jitter, model.component_of(x))
    torch.testing.assert_close(maps.sum((1, 2)), learnt, rtol=1e-3, atol=1e-4)


def test_level_is_no_evidence_and_rates_are_converted():
    model = small_model()
    wave = clips(1, model.window)
    torch.testing.assert_close(model.energy(0.01 * wave, 4000), model.energy(wave, 4000))
    slow = torch.sin(torch.arange(960) / 20)
    fast = torch.sin(torch.arange(1920) / 40)
    a, b = model.energy(slow, 4000), model.energy(fast, 8000)
    assert float(abs(a - b)) < 0.05 * float(abs(a))


def test_cleaning_is_tweedie_s_step_from_an_exact_draw_of_the_reference():
    model = small_model(trained=False)
    x, c = model.draw([0], [3], reference_only=True)
    g = torch.Generator().manual_seed(3)
    torch.multinomial(model.reference.log_weight(0).exp(), 1, generator=g)
    raw = model.reference.given(c).colour(torch.randn(256, generator=g)[None]).view(1, 1, 16, 16)
    _, score = value_and_grad(model.density.given(c), raw)
    torch.testing.assert_close(x, raw - model.sigma**2 * score)


@pytest.mark.parametrize(
    "bad", [torch.zeros(0), torch.tensor([torch.nan] * 9), torch.zeros(2, 3, 4)]
)
def test_waveforms_that_are_none(bad):
    with pytest.raises(ValueError, match="waveform"):
        small_model().energy(bad, 4000)


def test_impossible_requests():
    model = small_model()
    with pytest.raises(ValueError, match="at least 1"):
        model.generate(0)
    with pytest.raises(ValueError, match="label 3 is none of the 3 classes"):
        model.generate(1, label=3)
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        AudioEBM(LogMel(4000, 256, 64, 16), model.density, ("a", "b"), frames=16)


def test_folders_and_files_that_hold_no_model(tmp_path):
    with pytest.raises(WeightsError, match="no such run folder"):
        AudioEBM.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"no model\.safetensors in this folder"):
        AudioEBM.from_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"garbage")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        AudioEBM.from_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="another kind of safetensors file"):
        AudioEBM.from_pretrained(tmp_path)


def test_a_damaged_model(tmp_path):
    from safetensors import safe_open

    path = small_model().save_pretrained(tmp_path)
    with safe_open(path, "pt") as opened:
        header = opened.metadata()
    tensors = load_file(path)
    key = "density.network.head.weight"
    save_file({**tensors, key: tensors[key] * torch.nan}, path, header)
    with pytest.raises(WeightsError, match="NaN"):
        AudioEBM.from_pretrained(tmp_path)
    save_file({**tensors, key: torch.zeros(1, 3)}, path, header)
    with pytest.raises(WeightsError, match="do not match"):
        AudioEBM.from_pretrained(tmp_path)
    save_file(
        tensors, path, {"sance_audio": header["sance_audio"].replace('"format": 1', '"format": 9')}
    )
    with pytest.raises(WeightsError, match="format 9, this version reads 1"):
        AudioEBM.from_pretrained(tmp_path)


def test_an_unlabelled_model_does_all_but_classify(tmp_path):
    """One class of several components: a mixture without labels."""
    labelled = small_model()
    reference = GaussianReference(
        **labelled.reference.state_dict() | {"classes": torch.zeros(3, dtype=torch.long)}
    )
    energy = ReferencedEnergy(reference, labelled.density.network)
    model = AudioEBM(labelled.features, energy, frames=16, steps=3)
    model.save_pretrained(tmp_path)
    again = AudioEBM.from_pretrained(tmp_path)
    assert again.labels == ()
    waves = again.generate(3)
    assert write_clips(again, waves, again.classes(3), tmp_path) == [
        "0000.wav",
        "0001.wav",
        "0002.wav",
    ]
    assert len(set(again.draw([0] * 40, range(40), steps=0)[1].tolist())) == 3, "all components"
    x = again.log_mels(clips(2, again.window))
    torch.testing.assert_close(again.energy_of(x), again.energy_of(x, 0), rtol=1e-4, atol=1e-2)
    found = again.log_prob(waves, 4000)
    torch.testing.assert_close(found.nats, -again.energy(waves, 4000))


def test_energies_over_many_components_are_upper_bounds_close_to_the_sum():
    """Leaving out all but the four likeliest components of twelve adds less than 0.01 nats."""
    torch.manual_seed(0)
    reference = random_reference(components=12)
    network = ResidualEnergy(12, channels=(8, 8), depth=(1,), positions=1)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    energy = ReferencedEnergy(reference, network)
    x = reference.sample(torch.arange(12), torch.Generator().manual_seed(0)).view(-1, 1, 16, 16)
    weight = reference.weight.log()
    with torch.no_grad():
        every = [-energy(x, torch.full((12,), k)) + weight[k] for k in range(12)]
        bound, exact = energy.marginal(x, weight), -torch.stack(every, 1).logsumexp(1)
    assert (bound >= exact - 1e-3).all()
    assert (bound - exact).max() < 0.01


def test_a_temperature_scales_what_is_drawn():
    """With F = 0 the density is Gaussian: at tau its draws, and what cleaning leaves of them, are
    sqrt(tau) as far from the mean, whatever the sampler's steps.
    """
    model = small_model(trained=False)
    seeds = list(range(300))
    drawn = {}
    for tau in (1.0, 0.25):
        x, c = model.draw([0] * 300, seeds, 0, temperature=tau)
        drawn[tau] = x.flatten(1) - model.reference.mean[c]
    torch.testing.assert_close(drawn[0.25], 0.5 * drawn[1.0], rtol=1e-4, atol=1e-4)
    moved, c = model.draw([0] * 300, seeds, 20, temperature=0.25)
    ratio = (moved.flatten(1) - model.reference.mean[c]).square().mean() / drawn[
        1.0
    ].square().mean()
    assert abs(float(ratio) - 0.25) < 0.01
    plain, same = model.draw([0], [3], 4)[0], model.draw([0], [3], 4, temperature=1.0)[0]
    assert torch.equal(plain, same)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        model.draw([0], [0], 4, temperature=0.0)


def test_a_model_keeps_its_sampling_temperature(tmp_path):
    model = small_model()
    plain = model.generate(2)
    model.sampling_temperature = 0.5
    model.save_pretrained(tmp_path)
    again = AudioEBM.from_pretrained(tmp_path)
    assert torch.equal(again.generate(2, temperature=1.0), plain)
    assert not torch.equal(again.generate(2), plain)
    assert torch.equal(again.generate(2), model.generate(2, temperature=0.5))
