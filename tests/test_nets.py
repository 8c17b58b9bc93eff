"""Small nets: their shapes, names, gradients, and how they are watched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import streamcca as sc
from streamcca.errors import InputError
from streamcca.multiplicity.models.augment import augmented
from streamcca.multiplicity.models.nets import make_net, watched_layers

ARCHITECTURES = ("mlp", "convnet", "resnet", "vit")
SHAPES = ((1, 8, 8), (3, 32, 32), (3, 9, 13), (3, 64, 64), (1, 4, 4))


def net_of(architecture, shape=(1, 8, 8), classes=10, seed=0, **options):
    torch.manual_seed(seed)
    return make_net(architecture, shape=shape, classes=classes, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(architecture, shape):
    net = net_of(architecture, shape, classes=7, width=8)
    images = torch.rand(3, *shape)
    assert net(images).shape == (3, 7)
    features = net.representation(images)
    assert features.shape == (3, 32)
    assert features.min() >= 0
    assert net.head.in_features == 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_names_stages(architecture, depth):
    net = net_of(architecture, width=4, depth=depth)
    assert watched_layers(net) == (*(f"stage{i}" for i in range(1, depth + 1)), "features")
    seen = []
    for name in watched_layers(net):
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    net(torch.rand(2, 1, 8, 8))
    assert tuple(seen) == watched_layers(net)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_reaches_every_parameter(architecture):
    net = net_of(architecture, (3, 16, 16), dropout=0.1, width=8)
    images = torch.rand(32, 3, 16, 16, requires_grad=True)
    torch.nn.functional.cross_entropy(net(images), torch.arange(32) % 10).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # The bias of the keys in attention shifts all scores of a query alike, which softmax ignores.
        assert parameter.grad.abs().max() > 0, name
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows", ["pool", "auto"])
def test_watched_layers_all_reported(architecture, rows):
    net = net_of(architecture, (1, 16, 16), width=4, dropout=0.2).eval()
    with torch.no_grad(), sc.watch(net, layers=watched_layers(net), rows=rows) as watched:
        for images in torch.rand(40, 1, 16, 16).split(16):
            net(images)
    assert watched.never_called == ()
    assert dict.fromkeys(watched_layers(net), 40) == watched.counts
    assert watched.moments.views["features"] == 16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_changed_in_place_after_a_watched_layer(architecture):
    net = net_of(architecture, width=4).eval()
    kept = {}
    for name in watched_layers(net):
        net.get_submodule(name).register_forward_hook(
            lambda _m, _a, out, name=name: kept.__setitem__(name, (out, out.clone()))
        )
    with torch.no_grad():
        net(torch.rand(6, 1, 8, 8))
    assert set(kept) == set(watched_layers(net))
    for name, (out, copy) in kept.items():
        assert torch.equal(out, copy), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_draws_in_train_mode_only(architecture):
    images = torch.rand(8, 1, 8, 8)
    net = net_of(architecture, dropout=0.3)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))
    # Without dropout nothing is drawn, so that a step does not depend on the generator.
    plain = net_of(architecture)
    state = torch.get_rng_state()
    plain(images)
    assert torch.equal(state, torch.get_rng_state())
    # The same seed gives the same weights with and without it.
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_do_not_mix(architecture):
    """In eval mode an image's answer is its own, whatever the others are."""
    net = net_of(architecture, width=8).eval()
    images = torch.rand(9, 1, 8, 8)
    with torch.no_grad():
        together, alone = net(images), torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_image_counts(architecture):
    """Every pixel moves the logits (also those of sides that no patch and no stride divides)."""
    net = net_of(architecture, (1, 9, 11), width=8).eval()
    images = torch.rand(64, 1, 9, 11, requires_grad=True)
    (net(images) * torch.linspace(-1, 1, 10)).sum().backward()
    assert bool((images.grad.abs().sum(0) > 0).all())


def test_wrong_nets_are_refused():
    with pytest.raises(InputError, match="architecture: got 'lstm', expected one of 'mlp'"):
        net_of("lstm")
    with pytest.raises(InputError, match=r"shape: got \(1, 3, 8\)"):
        net_of("mlp", (1, 3, 8))
    with pytest.raises(InputError, match="got 1 classes"):
        net_of("mlp", classes=1)
    with pytest.raises(InputError, match="expected one that make_net made"):
        watched_layers(torch.nn.Linear(3, 2))


# ---------------------------------------------------------------------- augmentation

KINDS = ("translate", "rotate", "noise", "flip", "cutout", "strong")


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_is_seeded_and_stays_in_range(kind):
    images = torch.rand(64, 3, 12, 10)
    before = images.clone()
    state = torch.get_rng_state()
    one, again, other = (augmented(images, kind, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, images)
    assert one.shape == images.shape
    assert one.dtype == torch.float32
    assert one.min() >= 0
    assert one.max() <= 1 + 1e-6
    assert torch.equal(images, before)
    assert torch.equal(state, torch.get_rng_state())
    assert augmented(images, "none", 1) is images


def test_translate_moves_by_whole_pixels():
    images = torch.rand(200, 1, 16, 24)
    moved = augmented(images, "translate", 0)
    seen = set()
    for image, result in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(image, (3, 3, 2, 2))
        fits = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if torch.allclose(padded[:, 2 - down : 18 - down, 3 - right : 27 - right], result, atol=1e-4)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert {down for down, _ in seen} == set(range(-2, 3))
    assert {right for _, right in seen} == set(range(-3, 4))


def test_flip_mirrors_about_half():
    images = torch.rand(400, 1, 4, 5)
    result = augmented(images, "flip", 3)
    flipped = (result == images.flip(-1)).flatten(1).all(1)
    same = (result == images).flatten(1).all(1)
    assert bool((flipped ^ same).all())
    assert abs(int(flipped.sum()) - 200) < 5 * 10  # five deviations of a binomial


def test_cutout_is_one_square():
    result = augmented(torch.ones(300, 2, 12, 16), "cutout", 3)
    holes = result[:, 0] == 0
    assert torch.equal(holes, result[:, 1] == 0)
    areas = holes.flatten(1).sum(1)
    assert int(areas.max()) == 36
    assert int(areas.min()) >= 9  # at a corner a quarter of the square is inside
    for hole in holes:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None, :])


def test_rotation_keeps_what_a_turn_keeps():
    """A centered disk stays, also on images that are no squares; a bar turns by at most 15 degrees."""
    y, x = np.mgrid[0:32, 0:48]
    disk = ((y - 15.5) ** 2 + (x - 23.5) ** 2 < 100).astype(np.float32)
    result = augmented(torch.from_numpy(disk)[None, None].repeat(20, 1, 1, 1), "rotate", 0)
    assert float((result - torch.from_numpy(disk)).abs().mean()) < 0.02
    # A bar that lies and one that stands turn alike.
    slopes = []
    for bar, lying in ((abs(y - 15.5) < 2, True), (abs(x - 23.5) < 2, False)):
        turned = augmented(torch.from_numpy(bar.astype(np.float32))[None, None].repeat(200, 1, 1, 1), "rotate", 0)
        slopes.append([])
        for image in turned[:, 0].numpy() if lying else turned[:, 0].numpy().transpose(0, 2, 1):
            ends = [(image[:, at] * np.arange(len(image))).sum() / image[:, at].sum() for at in (9, len(image.T) - 10)]
            slopes[-1].append(np.degrees(np.arctan((ends[1] - ends[0]) / (len(image.T) - 19))))
    np.testing.assert_allclose(slopes[0], np.negative(slopes[1]), atol=0.5)
    assert 13 < np.max(slopes) < 15.5
    assert -15.5 < np.min(slopes) < -13


def test_noise_has_its_deviation():
    result = augmented(torch.full((50, 1, 16, 16), 0.5), "noise", 0) - 0.5
    assert abs(float(result.std()) - 0.1) < 0.003
    assert abs(float(result.mean())) < 0.005
