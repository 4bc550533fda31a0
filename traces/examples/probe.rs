//! probe
use std::path::Path; use std::time::Instant; use traces::*;
fn main(){ let a:Vec<String>=std::env::args().collect();
 let t=Instant::now();
 let s=if a[1]=="gen"{ let k:Workload=a[2].parse().unwrap(); let n:u64=a[3].parse().unwrap(); let o=GenerateOptions{requests:n,seed:a.get(4).map_or(1,|x|x.parse().unwrap()),rate_per_s:a.get(5).map(|x|x.parse().unwrap())};
   if a.get(6).is_some(){ let c=generate(k,&o).unwrap().count(); println!("{c} {:?}",t.elapsed()); return;}
   TraceStats::collect(generate(k,&o).unwrap().map(Ok)).unwrap()}
 else { let mut r=open(Path::new(&a[2]),&ReadOptions::default()).unwrap(); println!("{:?} seed {}",r.format(),r.uses_seed());
   if a.get(3).is_some(){ let c=r.by_ref().count(); println!("{c} {:?}",t.elapsed()); return;}
   let s=TraceStats::collect(r.by_ref()).unwrap(); println!("{:?}",r.mended()); s};
 println!("{:?}",t.elapsed()); for r in s.rows(){println!("{:24} {:?} {}",r.name,r.value,r.unit)} }
