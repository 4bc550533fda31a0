//! Calibration: the roofline's ten coefficients from a handful of measured steps.
//!
//! Each coefficient is a log-normal variable around the catalogue's value: the efficiencies with
//! a band of 20 %, the times with a factor of 2, the rest in between. Measured steps have a
//! relative error of about 3 %, and now and then a larger one (soft-L1). The fit is the most
//! likely set: least squares over one residual per step and one per coefficient, by
//! Levenberg-Marquardt. Because of the second kind fifteen steps suffice.
//!
//! The bootstrap draws the steps anew with replacement and fits again. The spread of the sets
//! tells how far a simulated metric could be off through the calibration; the errors at the steps
//! that a draw left out give prediction intervals for single steps. Neither covers regimes that
//! no measured step is near to.

use super::roofline::{Coefficients, Roofline, Shape};
use super::{CostModel, Work};
use crate::hardware::Gpu;
use crate::model::{KvType, Model, WeightType};
use levenberg_marquardt::{LeastSquaresProblem, LevenbergMarquardt};
use nalgebra::storage::Owned;
use nalgebra::{Const, DVector, Dyn, OMatrix, SVector};
use serde::{Deserialize, Serialize};
use traces::random::SplitMix64;

/// Coefficients of the formula.
const COUNT: usize = 10;
/// Fewer steps than this are no calibration.
const SAMPLES_MIN: usize = 5;
/// Relative error of a measured step.
const NOISE: f64 = 0.03;
/// Standard deviations of the logarithm of each coefficient, in the order of `to_logs`.
const BANDS: [f64; COUNT] = [0.7, 0.7, 0.7, 0.2, 0.2, 0.5, 0.2, 0.2, 0.7, 0.3];
/// Quantiles of the out-of-bag errors that a calibration keeps.
const QUANTILES: usize = 101;

/// A measured step.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What was computed; its moves are not part of the fit and should be none.
    pub work: Work,
    /// How long it took, ns.
    pub step_ns: u64,
    /// How much it counts, 1 for an ordinary step: the share of such steps in the trace, say.
    pub weight: f64,
}

/// A calibration: coefficients, how sure they are, and what they were measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fitted {
    /// Name of the model.
    pub model: String,
    /// How its weights were stored.
    pub weights: WeightType,
    /// How K and V were stored.
    pub kv: KvType,
    /// Name of the device.
    pub gpu: String,
    /// Measured steps.
    pub samples: usize,
    /// Mean relative error at these steps, unweighted, as a fraction.
    pub error_mean: f64,
    /// Seed of the bootstrap; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The most likely coefficients.
    pub coefficients: Coefficients,
    /// Quantiles 0, 1 ... 100 % of ln(measured / predicted) at steps left out; empty without a
    /// bootstrap.
    #[serde(default)]
    pub errors: Vec<f64>,
    /// One set per bootstrap draw, in the order of the fields of `Coefficients`.
    #[serde(default)]
    pub resampled: Vec<[f64; COUNT]>,
}

/// Why there is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// Too few steps.
    #[error("{given} measured steps, at least {least} are needed")]
    TooFew {
        /// Steps given.
        given: usize,
        /// Steps needed.
        least: usize,
    },
    /// A step that says nothing.
    #[error("measured step {index}: {what}")]
    Sample {
        /// Index, from 0.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The solver gave up.
    #[error("the fit does not converge: {0}")]
    Stuck(String),
    /// The calibration is of something else.
    #[error("the calibration is for {what} {fitted}, not for {asked}")]
    Mismatch {
        /// `model`, `weights`, `KV type` or `GPU`.
        what: &'static str,
        /// What was measured.
        fitted: String,
        /// What is to be priced.
        asked: String,
    },
    /// The text is not TOML, or its fields are not those of a calibration.
    #[error("calibration: {0}")]
    Toml(#[from] toml::de::Error),
    /// The calibration cannot be written.
    #[error("calibration: {0}")]
    Write(#[from] toml::ser::Error),
}

/// Finds the coefficients that explain measured steps of `model` on `gpu`. The catalogue's
/// values are where the search starts and what it falls back to where the steps say nothing.
///
/// # Errors
///
/// `TooFew`, `Sample`, or `Stuck` if the solver finds no minimum.
pub fn fit(
    samples: &[Sample],
    model: &Model,
    weights: WeightType,
    kv: KvType,
    gpu: &Gpu,
) -> Result<Fitted, FitError> {
    check(samples)?;
    let shape = Shape::new(model, weights, kv, gpu);
    let prior = to_logs(&Coefficients::prior(model, gpu));
    let counts = vec![1; samples.len()];
    let logs = solve(&shape, &prior, samples, &counts, SVector::zeros())?;
    let coefficients = from_logs(&prior, &logs);
    let errors = samples.iter().map(|sample| {
        let ratio = shape.ns(&coefficients, &sample.work) / sample.step_ns as f64;
        (ratio - 1.0).abs()
    });
    Ok(Fitted {
        model: model.name.clone(),
        weights,
        kv,
        gpu: gpu.name.clone(),
        samples: samples.len(),
        error_mean: errors.sum::<f64>() / samples.len() as f64,
        seed: None,
        coefficients,
        errors: Vec::new(),
        resampled: Vec::new(),
    })
}

/// [`fit`], then `draws` bootstrap draws (200 is plenty): fills `resampled` and `errors`. Equal
/// seeds give equal results.
///
/// # Errors
///
/// Those of [`fit`]. A draw that the solver cannot fit is left out.
pub fn fit_with_bootstrap(
    samples: &[Sample],
    model: &Model,
    weights: WeightType,
    kv: KvType,
    gpu: &Gpu,
    draws: usize,
    seed: u64,
) -> Result<Fitted, FitError> {
    let mut fitted = fit(samples, model, weights, kv, gpu)?;
    let shape = Shape::new(model, weights, kv, gpu);
    let prior = to_logs(&Coefficients::prior(model, gpu));
    let best = logs_between(&prior, &to_logs(&fitted.coefficients));
    let mut random = SplitMix64::new(seed);
    let mut errors = Vec::new();
    for _ in 0..draws {
        let mut counts = vec![0; samples.len()];
        for _ in 0..samples.len() {
            counts[(random.bits() % samples.len() as u64) as usize] += 1;
        }
        let Ok(logs) = solve(&shape, &prior, samples, &counts, best) else {
            continue;
        };
        let coefficients = from_logs(&prior, &logs);
        for (sample, _) in samples.iter().zip(&counts).filter(|(_, count)| **count == 0) {
            errors.push((sample.step_ns as f64 / shape.ns(&coefficients, &sample.work)).ln());
        }
        fitted.resampled.push(to_array(&coefficients));
    }
    errors.sort_unstable_by(f64::total_cmp);
    if !errors.is_empty() {
        let quantile = |index| errors[index * (errors.len() - 1) / (QUANTILES - 1)];
        fitted.errors = (0..QUANTILES).map(quantile).collect();
    }
    fitted.seed = Some(seed);
    Ok(fitted)
}

impl Fitted {
    /// The cost model with the most likely coefficients.
    ///
    /// # Errors
    ///
    /// `Mismatch` if the calibration is of another model, type or device.
    pub fn cost(
        &self,
        model: &Model,
        weights: WeightType,
        kv: KvType,
        gpu: &Gpu,
    ) -> Result<Roofline, FitError> {
        self.check(model, weights, kv, gpu)?;
        Ok(Roofline::fitted(model, weights, kv, gpu, self.coefficients))
    }

    /// One cost model per bootstrap draw: simulate with each to see how a metric spreads.
    ///
    /// # Errors
    ///
    /// `Mismatch` if the calibration is of another model, type or device.
    pub fn resampled_costs(
        &self,
        model: &Model,
        weights: WeightType,
        kv: KvType,
        gpu: &Gpu,
    ) -> Result<Vec<Roofline>, FitError> {
        self.check(model, weights, kv, gpu)?;
        let sets = self.resampled.iter().map(from_array);
        Ok(sets.map(|set| Roofline::fitted(model, weights, kv, gpu, set)).collect())
    }

    /// Bounds between which a step lies with probability `level` (0.95, say), if it resembles the
    /// measured ones; none without a bootstrap.
    pub fn interval_ns(&self, cost: &Roofline, work: &Work, level: f64) -> Option<(u64, u64)> {
        let last = self.errors.len().checked_sub(1)?;
        let tail = (1.0 - level.clamp(0.0, 1.0)) / 2.0 * last as f64;
        let low = self.errors.get(tail.floor() as usize)?;
        let high = self.errors.get(last - (tail.floor() as usize).min(last))?;
        let ns = cost.step_ns(work) as f64;
        Some(((ns * low.exp()) as u64, (ns * high.exp()) as u64))
    }

    /// Reads a calibration that [`Fitted::to_toml`] wrote.
    ///
    /// # Errors
    ///
    /// `Toml` with line and column.
    pub fn from_toml(text: &str) -> Result<Self, FitError> {
        Ok(toml::from_str(text)?)
    }

    /// The calibration as TOML.
    ///
    /// # Errors
    ///
    /// `Write` for what TOML cannot hold: numbers above 2^63.
    pub fn to_toml(&self) -> Result<String, FitError> {
        Ok(toml::to_string(self)?)
    }

    fn check(&self, model: &Model, weights: WeightType, kv: KvType, gpu: &Gpu) -> Result<(), FitError> {
        let pairs = [
            ("model", self.model.as_str(), model.name.as_str()),
            ("weights", self.weights.name(), weights.name()),
            ("KV type", self.kv.name(), kv.name()),
            ("GPU", self.gpu.as_str(), gpu.name.as_str()),
        ];
        match pairs.into_iter().find(|(_, fitted, asked)| fitted != asked) {
            Some((what, fitted, asked)) => {
                Err(FitError::Mismatch { what, fitted: fitted.to_owned(), asked: asked.to_owned() })
            }
            None => Ok(()),
        }
    }
}

fn check(samples: &[Sample]) -> Result<(), FitError> {
    if samples.len() < SAMPLES_MIN {
        return Err(FitError::TooFew { given: samples.len(), least: SAMPLES_MIN });
    }
    for (index, sample) in samples.iter().enumerate() {
        let what = if sample.work.tokens == 0 {
            "no tokens"
        } else if sample.step_ns == 0 {
            "takes no time"
        } else if !(sample.weight.is_finite() && sample.weight >= 0.0) {
            "the weight is not a number from 0 up"
        } else {
            continue;
        };
        return Err(FitError::Sample { index, what });
    }
    Ok(())
}

type Logs = SVector<f64, COUNT>;

fn to_array(at: &Coefficients) -> [f64; COUNT] {
    [
        at.step_ns,
        at.token_ns,
        at.sample_ns,
        at.gemm,
        at.weights,
        at.sharpness,
        at.decode,
        at.prefill,
        at.reread,
        at.mixed,
    ]
}

fn from_array(numbers: &[f64; COUNT]) -> Coefficients {
    let [step_ns, token_ns, sample_ns, gemm, weights, sharpness, decode, prefill, reread, mixed] = *numbers;
    Coefficients { step_ns, token_ns, sample_ns, gemm, weights, sharpness, decode, prefill, reread, mixed }
}

/// The index of `sharpness`, which is at least 1 and so has the logarithm of what exceeds it.
const SHARPNESS: usize = 5;

fn to_logs(at: &Coefficients) -> Logs {
    let mut numbers = to_array(at);
    numbers[SHARPNESS] -= 1.0;
    Logs::from(numbers.map(|number| number.max(f64::MIN_POSITIVE).ln()))
}

/// Standard deviations from the prior, back to coefficients.
fn from_logs(prior: &Logs, deviations: &Logs) -> Coefficients {
    let mut numbers = [0.0; COUNT];
    for index in 0..COUNT {
        // far from the prior nothing is believable, and exp() must stay finite
        let deviation = deviations[index].clamp(-20.0, 20.0);
        numbers[index] = (prior[index] + BANDS[index] * deviation).exp();
    }
    numbers[SHARPNESS] += 1.0;
    from_array(&numbers)
}

fn logs_between(prior: &Logs, logs: &Logs) -> Logs {
    (logs - prior).component_div(&Logs::from(BANDS))
}

/// One residual per sample, then one per coefficient: how far it is from the catalogue's value.
struct Problem<'a> {
    shape: &'a Shape,
    prior: &'a Logs,
    samples: Vec<(&'a Sample, f64)>,
    deviations: Logs,
}

impl Problem<'_> {
    fn residuals_at(&self, deviations: &Logs) -> DVector<f64> {
        let at = from_logs(self.prior, deviations);
        let steps = self.samples.iter().map(|(sample, weight)| {
            let ratio = self.shape.ns(&at, &sample.work) / sample.step_ns as f64;
            soft(ratio.ln() / NOISE) * weight.sqrt()
        });
        let residuals: Vec<f64> = steps.chain(deviations.iter().copied()).collect();
        DVector::from_vec(residuals)
    }
}

/// Soft-L1: the square of this grows like the square near 0 and like the distance far away.
fn soft(residual: f64) -> f64 {
    let cost = 2.0 * ((1.0 + residual * residual).sqrt() - 1.0);
    cost.max(0.0).sqrt().copysign(residual)
}

impl LeastSquaresProblem<f64, Dyn, Const<COUNT>> for Problem<'_> {
    type ResidualStorage = Owned<f64, Dyn>;
    type JacobianStorage = Owned<f64, Dyn, Const<COUNT>>;
    type ParameterStorage = Owned<f64, Const<COUNT>>;

    fn set_params(&mut self, deviations: &Logs) {
        self.deviations.copy_from(deviations);
    }

    fn params(&self) -> Logs {
        self.deviations
    }

    fn residuals(&self) -> Option<DVector<f64>> {
        Some(self.residuals_at(&self.deviations))
    }

    /// Central differences: the parameters are standard deviations, so one step size suits all.
    fn jacobian(&self) -> Option<OMatrix<f64, Dyn, Const<COUNT>>> {
        const STEP: f64 = 1e-5;
        let rows = self.samples.len() + COUNT;
        let mut jacobian = OMatrix::<f64, Dyn, Const<COUNT>>::zeros(rows);
        for column in 0..COUNT {
            let mut up = self.deviations;
            let mut down = self.deviations;
            up[column] += STEP;
            down[column] -= STEP;
            let slope = (self.residuals_at(&up) - self.residuals_at(&down)) / (2.0 * STEP);
            jacobian.set_column(column, &slope);
        }
        Some(jacobian)
    }
}

fn solve(
    shape: &Shape,
    prior: &Logs,
    samples: &[Sample],
    counts: &[u32],
    start: Logs,
) -> Result<Logs, FitError> {
    let drawn = samples.iter().zip(counts).filter(|(_, count)| **count > 0);
    let problem = Problem {
        shape,
        prior,
        samples: drawn.map(|(sample, count)| (sample, sample.weight * f64::from(*count))).collect(),
        deviations: start,
    };
    let (problem, report) = LevenbergMarquardt::new().with_tol(1e-9).minimize(problem);
    if report.termination.was_successful() {
        Ok(problem.deviations)
    } else {
        Err(FitError::Stuck(format!("{:?}", report.termination)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::sweep;
    use crate::{hardware, model};

    fn setting() -> (Model, Gpu) {
        (model::find("gemma3-4b").unwrap().0, hardware::find("rtx3090").unwrap())
    }

    fn measured(model: &Model, gpu: &Gpu, truth: &Coefficients) -> Vec<Sample> {
        let shape = Shape::new(model, WeightType::Bf16, KvType::F16, gpu);
        let works = sweep::designed(model).into_iter();
        let samples = works.map(|work| Sample { step_ns: shape.ns(truth, &work) as u64, work, weight: 1.0 });
        samples.collect()
    }

    #[test]
    fn steps_made_by_other_coefficients_are_explained() {
        let (model, gpu) = setting();
        let mut truth = Coefficients::prior(&model, &gpu);
        truth.step_ns *= 1.8;
        truth.gemm *= 0.8;
        truth.weights *= 0.9;
        truth.decode *= 0.75;
        truth.mixed *= 1.2;
        let samples = measured(&model, &gpu, &truth);
        let fitted = fit(&samples, &model, WeightType::Bf16, KvType::F16, &gpu).unwrap();
        assert!(fitted.error_mean < 0.01, "{}", fitted.error_mean);
        assert!((fitted.coefficients.gemm / truth.gemm - 1.0).abs() < 0.03);
        // fixed time and weights are constant together, so only their sum can be known
        let shape = Shape::new(&model, WeightType::Bf16, KvType::F16, &gpu);
        let one = sweep::step(&model, 3, 500, None);
        let ratio = shape.ns(&fitted.coefficients, &one) / shape.ns(&truth, &one);
        assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn one_wild_measurement_does_little() {
        let (model, gpu) = setting();
        let truth = Coefficients::prior(&model, &gpu);
        let mut samples = measured(&model, &gpu, &truth);
        samples[3].step_ns *= 3;
        let fitted = fit(&samples, &model, WeightType::Bf16, KvType::F16, &gpu).unwrap();
        let shape = Shape::new(&model, WeightType::Bf16, KvType::F16, &gpu);
        for sample in samples.iter().filter(|sample| sample.work.decodes != 40) {
            let ratio = shape.ns(&fitted.coefficients, &sample.work) / sample.step_ns as f64;
            assert!((0.9..1.1).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn the_prior_alone_comes_back_from_its_own_steps() {
        let (model, gpu) = setting();
        let prior = Coefficients::prior(&model, &gpu);
        let samples = measured(&model, &gpu, &prior);
        let fitted = fit(&samples, &model, WeightType::Bf16, KvType::F16, &gpu).unwrap();
        for (found, known) in to_array(&fitted.coefficients).iter().zip(to_array(&prior)) {
            assert!((found / known - 1.0).abs() < 1e-4, "{found} {known}");
        }
        assert_eq!(from_array(&to_array(&prior)), prior);
    }

    #[test]
    fn useless_measurements_are_refused() {
        let (model, gpu) = setting();
        let mut samples = measured(&model, &gpu, &Coefficients::prior(&model, &gpu));
        let refusal = |samples: &[Sample]| {
            let error = fit(samples, &model, WeightType::Bf16, KvType::F16, &gpu).unwrap_err();
            error.to_string()
        };
        assert!(refusal(&samples[..4]).contains("at least 5"));
        samples[6].step_ns = 0;
        assert_eq!(refusal(&samples), "measured step 6: takes no time");
    }
}
