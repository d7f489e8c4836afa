import numpy as np

from sftknow.grading.sampling import SampleRequest, uniforms
from sftknow.records import SamplingPolicy


def request(fact_id="P36/train/1", template=3, prompt="p", answers=("a",)):
    return SampleRequest(fact_id=fact_id, template=template, prompt=prompt, answers=answers)


def test_the_stream_belongs_to_seed_fact_and_template_alone():
    policy = SamplingPolicy(seed=5)
    stream = uniforms(request(), policy)
    assert np.array_equal(
        stream, uniforms(request(prompt="other", answers=("b",)), SamplingPolicy(seed=5, temperature=2))
    )
    for other, its_policy in [
        (request(fact_id="P36/train/2"), policy),
        (request(template=4), policy),
        (request(), SamplingPolicy(seed=6)),
        (request(fact_id="P36/train/1\x00", template=3), policy),
    ]:
        assert not np.intersect1d(stream, uniforms(other, its_policy)).size


def test_the_stream_never_changes_between_versions():
    # Counts that people have published hang on these numbers.
    stream = uniforms(request(), SamplingPolicy(samples=2, max_new_tokens=2))
    assert stream.tolist() == [
        [0.6883395154063812, 0.2617748888615494],
        [0.4460869922124473, 0.42650775739430946],
    ]


def test_fewer_samples_are_the_first_of_more():
    few, many = (uniforms(request(), SamplingPolicy(samples=n)) for n in (3, 10))
    assert few.shape == (3, 32)
    assert np.array_equal(few, many[:3])


def test_streams_are_uniform_together():
    values = np.concatenate([uniforms(request(template=i), SamplingPolicy()).ravel() for i in range(300)])
    counts, _ = np.histogram(values, bins=50, range=(0, 1))
    expected = len(values) / 50
    assert ((counts - expected) ** 2 / expected).sum() < 85  # 99.9 % point of chi-square with 49 degrees
