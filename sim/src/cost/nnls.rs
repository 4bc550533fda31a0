//! Non-negative least squares: the active-set method of Lawson and Hanson (1974, chapter 23).
//!
//! It takes the normal equations, since features are few (some tens) and a ridge keeps them well
//! conditioned.

use nalgebra::{Cholesky, DMatrix, DVector};

/// What counts as zero beside the largest entry of the right-hand side.
const TOLERANCE: f64 = 1e-12;

/// The `x >= 0` at which `x' gram x / 2 - rhs' x` is least; `gram` is symmetric and positive definite.
/// None if it is not, or has entries that are no numbers.
///
/// At the solution the gradient `gram x - rhs` is 0 where `x` is positive and not negative elsewhere.
pub fn nnls(gram: &DMatrix<f64>, rhs: &DVector<f64>) -> Option<DVector<f64>> {
    if !gram.iter().chain(rhs.iter()).all(|number| number.is_finite()) {
        return None;
    }
    let size = rhs.len();
    let tolerance = TOLERANCE * rhs.amax();
    let mut x = DVector::zeros(size);
    // Columns that may be positive, and those that cannot become so before another does.
    let (mut free, mut barred) = (vec![false; size], vec![false; size]);
    // Each column enters a few times at most; more means that rounding goes in circles.
    for _ in 0..10 * size.max(1) {
        let slope = rhs - gram * &x;
        let candidates = (0..size).filter(|&at| !free[at] && !barred[at] && slope[at] > tolerance);
        let Some(enters) = candidates.max_by(|&a, &b| slope[a].total_cmp(&slope[b])) else {
            return Some(x);
        };
        free[enters] = true;
        let mut is_first = true;
        loop {
            let target = least_squares(gram, rhs, &free)?;
            if is_first && target[enters] <= 0.0 {
                // Only rounding made it look useful.
                free[enters] = false;
                barred[enters] = true;
                break;
            }
            is_first = false;
            let share = |at: usize| x[at] / (x[at] - target[at]);
            let blocking = (0..size).filter(|&at| free[at] && target[at] <= 0.0);
            let Some(first) = blocking.min_by(|&a, &b| share(a).total_cmp(&share(b))) else {
                x = target;
                barred.fill(false);
                break;
            };
            let share = share(first);
            x += (&target - &x) * share;
            for at in 0..size {
                if at == first || (free[at] && x[at] <= 0.0) {
                    free[at] = false;
                    x[at] = 0.0;
                }
            }
        }
    }
    Some(x)
}

/// The solution without signs in which only free columns count; the others are 0.
fn least_squares(gram: &DMatrix<f64>, rhs: &DVector<f64>, free: &[bool]) -> Option<DVector<f64>> {
    let columns: Vec<usize> = (0..free.len()).filter(|&at| free[at]).collect();
    let part = gram.select_rows(&columns).select_columns(&columns);
    let solution = Cholesky::new(part)?.solve(&rhs.select_rows(&columns));
    let mut all = DVector::zeros(free.len());
    for (at, number) in columns.into_iter().zip(solution.iter()) {
        all[at] = *number;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use traces::random::SplitMix64;

    use super::*;

    fn problem(rows: usize, size: usize, seed: u64) -> (DMatrix<f64>, DVector<f64>) {
        let mut random = SplitMix64::new(seed);
        let mut number = || random.unit() * 2.0 - 1.0;
        let a = DMatrix::from_fn(rows, size, |_, _| number());
        let b = DVector::from_fn(rows, |_, _| number());
        (a.tr_mul(&a) + DMatrix::identity(size, size) * 1e-3, a.tr_mul(&b))
    }

    fn value(gram: &DMatrix<f64>, rhs: &DVector<f64>, x: &DVector<f64>) -> f64 {
        (gram * x).dot(x) / 2.0 - rhs.dot(x)
    }

    #[test]
    fn no_choice_of_positive_columns_does_better() {
        for seed in 0..300 {
            let size = 1 + seed as usize % 6;
            let (gram, rhs) = problem(size + 3, size, seed);
            let found = nnls(&gram, &rhs).unwrap();
            let best = (0..1u32 << size)
                .map(|set| {
                    let free: Vec<bool> = (0..size).map(|at| set >> at & 1 == 1).collect();
                    least_squares(&gram, &rhs, &free).unwrap()
                })
                .filter(|x| x.iter().all(|&number| number >= 0.0))
                .map(|x| value(&gram, &rhs, &x))
                .fold(f64::INFINITY, f64::min);
            let reached = value(&gram, &rhs, &found);
            assert!((reached - best).abs() < 1e-10, "seed {seed}: {reached} {best}");
        }
    }

    #[test]
    fn the_gradient_vanishes_where_the_solution_is_positive_and_points_up_elsewhere() {
        for seed in 0..100 {
            let (gram, rhs) = problem(25, 24, 1000 + seed);
            let x = nnls(&gram, &rhs).unwrap();
            let gradient = &gram * &x - &rhs;
            for (number, slope) in x.iter().zip(gradient.iter()) {
                assert!(*number >= 0.0);
                let ok = if *number > 0.0 { slope.abs() < 1e-9 } else { *slope > -1e-9 };
                assert!(ok, "seed {seed}: x {number} slope {slope}");
            }
        }
    }

    #[test]
    fn columns_that_are_all_but_equal_do_not_go_in_circles() {
        let mut random = SplitMix64::new(5);
        let mut small = || random.unit() * 2.0 - 1.0;
        let base = DVector::from_fn(12, |_, _| 1.0 + small());
        let columns: Vec<DVector<f64>> = (0..8).map(|_| base.map(|number| number + 1e-9 * small())).collect();
        let a = DMatrix::from_columns(&columns);
        let gram = a.tr_mul(&a) + DMatrix::identity(8, 8) * 1e-9;
        let x = nnls(&gram, &a.tr_mul(&base)).unwrap();
        assert!((x.sum() - 1.0).abs() < 1e-6, "{x}");
    }

    #[test]
    fn what_is_not_positive_definite_has_no_answer() {
        let rhs = DVector::from_element(2, 1.0);
        assert!(nnls(&-DMatrix::identity(2, 2), &rhs).is_none());
        assert!(nnls(&DMatrix::from_element(2, 2, f64::NAN), &rhs).is_none());
        assert_eq!(nnls(&DMatrix::identity(2, 2), &-rhs).unwrap().sum(), 0.0);
    }
}
