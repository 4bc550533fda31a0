//! Means with standard errors clustered by document: tokens of one document are not independent.

/// A mean over tokens, with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The mean, in the unit of the numbers; NaN where there are none.
    pub mean: f64,
    /// Standard error, clustered by document; NaN for fewer than two documents.
    pub error: f64,
    /// Numbers.
    pub count: u64,
}

/// What one document contributes to a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cluster {
    /// Sum of its numbers.
    pub sum: f64,
    /// How many they are.
    pub count: u64,
}

impl Cluster {
    /// Takes a number in.
    pub fn add(&mut self, number: f64) {
        self.sum += number;
        self.count += 1;
    }
}

impl FromIterator<f64> for Cluster {
    fn from_iter<I: IntoIterator<Item = f64>>(numbers: I) -> Cluster {
        let mut cluster = Cluster::default();
        numbers.into_iter().for_each(|number| cluster.add(number));
        cluster
    }
}

/// The mean over all tokens. It is a ratio of sums over documents; its error is that of the ratio
/// estimator, from the residuals `sum - mean * count` of the documents (Cochran, Sampling Techniques, 6.4).
pub fn estimate(clusters: &[Cluster]) -> Estimate {
    let count: u64 = clusters.iter().map(|cluster| cluster.count).sum();
    let mean = clusters.iter().map(|cluster| cluster.sum).sum::<f64>() / count as f64;
    let documents = clusters.iter().filter(|cluster| cluster.count > 0).count() as f64;
    let residual = |cluster: &Cluster| (cluster.sum - mean * cluster.count as f64).powi(2);
    let squares: f64 = clusters.iter().map(residual).sum();
    let error = (documents / (documents - 1.0) * squares).sqrt() / count as f64;
    Estimate { mean, error: if documents > 1.0 { error } else { f64::NAN }, count }
}

/// The mean difference `a - b` over tokens that both have scored.
///
/// # Panics
/// If a document does not contribute as many numbers to both.
pub fn difference(a: &[Cluster], b: &[Cluster]) -> Estimate {
    let pair = |(a, b): (&Cluster, &Cluster)| {
        assert_eq!(a.count, b.count, "the same tokens of the same documents");
        Cluster { sum: a.sum - b.sum, count: a.count }
    };
    estimate(&a.iter().zip(b).map(pair).collect::<Vec<Cluster>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clusters(documents: &[Vec<f64>]) -> Vec<Cluster> {
        documents.iter().map(|numbers| numbers.iter().copied().collect()).collect()
    }

    #[test]
    fn one_number_a_document_gives_the_standard_error_of_a_mean() {
        let numbers = [1.0, 4.0, 2.0, 8.0, 5.0];
        let found = estimate(&clusters(&numbers.map(|number| vec![number])));
        let variance: f64 = numbers.iter().map(|number| (number - 4.0f64).powi(2)).sum::<f64>() / 4.0;
        assert_eq!(found.mean, 4.0);
        assert!((found.error - (variance / 5.0).sqrt()).abs() < 1e-12);
        assert_eq!(found.count, 5);
    }

    #[test]
    fn equal_tokens_within_documents_count_as_one_number_each() {
        let each = [1.0, 4.0, 2.0, 8.0, 5.0];
        let tenfold = each.map(|number| vec![number; 10]);
        let found = estimate(&clusters(&tenfold));
        let single = estimate(&clusters(&each.map(|number| vec![number])));
        assert!((found.error - single.error).abs() < 1e-12, "ten equal tokens tell no more than one");
    }

    #[test]
    fn nothing_and_one_document_have_no_error() {
        assert!(estimate(&[]).mean.is_nan());
        let one = estimate(&clusters(&[vec![1.0, 2.0]]));
        assert_eq!(one.mean, 1.5);
        assert!(one.error.is_nan());
        let with_empty = estimate(&clusters(&[vec![1.0, 2.0], vec![], vec![3.0]]));
        let without = estimate(&clusters(&[vec![1.0, 2.0], vec![3.0]]));
        assert_eq!(with_empty, without);
    }

    proptest! {
        /// The naive formula: a double sum over all pairs of tokens of the same document.
        #[test]
        fn the_error_is_that_of_the_pairwise_formula(
            documents in prop::collection::vec(prop::collection::vec(-10.0..10.0f64, 1..6), 2..8),
        ) {
            let found = estimate(&clusters(&documents));
            let all: Vec<f64> = documents.iter().flatten().copied().collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let mut sum = 0.0;
            for document in &documents {
                for a in document {
                    for b in document {
                        sum += (a - mean) * (b - mean);
                    }
                }
            }
            let d = documents.len() as f64;
            let error = (d / (d - 1.0) * sum.max(0.0)).sqrt() / all.len() as f64;
            prop_assert!((found.mean - mean).abs() < 1e-9);
            prop_assert!((found.error - error).abs() < 1e-6, "{} {error}", found.error);
        }

        #[test]
        fn a_paired_difference_is_the_estimate_of_the_differences(
            documents in prop::collection::vec(prop::collection::vec((-9.0..9.0f64, -9.0..9.0f64), 1..6), 2..8),
        ) {
            let of = |pick: fn(&(f64, f64)) -> f64| -> Vec<Cluster> {
                documents.iter().map(|numbers| numbers.iter().map(pick).collect()).collect()
            };
            let found = difference(&of(|pair| pair.0), &of(|pair| pair.1));
            let expected = estimate(&of(|pair| pair.0 - pair.1));
            prop_assert!((found.mean - expected.mean).abs() < 1e-9);
            prop_assert!((found.error - expected.error).abs() < 1e-6);
        }
    }
}
