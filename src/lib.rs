//! epiniod: from source code to a running URL, with one file.
//!
//! # What it is
//!
//! One static Linux binary takes an application's source, builds an OCI image from it with Cloud
//! Native Buildpacks, keeps the image in its own registry, runs it in a sandbox, gives it a URL,
//! and keeps it running. Nothing else has to be installed. The same binary is the daemon
//! (`epiniod serve`), the command line (`epiniod push`), every phase of a build, the embedded
//! buildpacks, and the process that sets a sandbox up; `main.rs` tells these roles apart.
//!
//! # Rooms
//!
//! A room is a noun of the product. Arrows go one way, and a test checks them:
//!
//! ```text
//! cli → daemon → {api, dashboard, edge} → {staging, apps, source} → builders → {lifecycle, base, acme, auth} → runtime → oci → {blob, store} → model
//! ```
//!
//! | room | what it is |
//! |---|---|
//! | [`cli`] | the commands; turns errors into hints and exit codes |
//! | [`config`] | the settings of the daemon, one small struct per concern |
//! | [`daemon`] | assembles the rooms, announces addresses, tells the service manager, drains, collects garbage |
//! | [`api`] | Epinio's API (v1), and the upload for plain `curl` |
//! | [`dashboard`] | the web page, one more client of the API: static files of `embedded/dashboard` |
//! | [`edge`] | the listener: routes requests to applications and to the API |
//! | [`staging`] | the queue and the journalled state machine from source to image |
//! | [`apps`] | releases, health gate, scale, environment, the route table |
//! | [`source`] | archives that users hand in: received, checked, unpacked, packed |
//! | [`acme`] | certificates of the edge: of authorities of the public, else of our own |
//! | [`lifecycle`] | the platform side of Cloud Native Buildpacks |
//! | [`buildpacks`] | the embedded buildpacks, written with libcnb |
//! | [`base`] | base images from Debian packages |
//! | [`builders`] | builder images of others, copied into the registry with their run images |
//! | [`auth`] | users, passwords, tokens, and the log of what was changed |
//! | [`runtime`] | where things run: jobs of steps, and workloads; in sandboxes of this machine, or in a cluster |
//! | [`launcher`] | the small program in every application image |
//! | [`oci`] | manifests, one-pass layers, the registry and its client |
//! | [`blob`], [`store`] | content by digest, and small typed objects with compare-and-swap |
//! | [`model`] | names, digests, routes, applications, stagings, releases |
//! | [`telemetry`] | logs of the daemon, and the ids of requests |
//!
//! # A push
//!
//! 1. [`source`] takes the archive as a stream: it is sniffed, decompressed, checked entry by entry and
//!    hashed while it is written to [`blob`]. Nothing is acknowledged before it is durable.
//! 2. [`staging`] writes a record for every state before the work of that state begins. Its first job
//!    has two steps in sandboxes of their own: *prepare* unpacks the source and restores what was
//!    cached, *detect* asks the buildpacks, without network.
//! 3. What they require of Debian becomes a pair of base images in [`base`]: one to build on, one to run
//!    on. A base is named by its exact package versions, made once, and shared.
//!    With a builder image of others ([`builders`]) that image and its run image take the place of the bases, and
//!    the buildpacks are asked in the build step.
//! 4. The *build* step runs the buildpacks as an unprivileged user on the build base. It sees no
//!    credential: not in its environment, not in a file, not in another process. *Export* then writes the
//!    image, one pass for each layer, with a token for exactly this repository.
//! 5. [`apps`] makes a numbered release and has it started beside the one that serves. When every instance
//!    accepts connections, the route table is replaced, the old instances finish what they have, and stop.
//!    Whatever else a push wants of an application (instances, routes, environment) travels with the staging and
//!    the release, and becomes true then: a push that fails leaves everything as it was.
//!
//! When source, environment, builder and all base packages are what they were, the image of the
//! last staging is used again, and the log says so.
//!
//! # A request
//!
//! 1. [`edge`] reads the head of the request and decides by host: the API's own hosts, or a route.
//! 2. The route table is an immutable map behind an atomic pointer. A look-up takes the backend with
//!    the fewest requests in flight, and counts the request until its body (or websocket) has ended.
//! 3. Instances are spoken to by HTTP/1.1, on connections that are kept; a websocket of HTTP/2 becomes one of HTTP/1.1. gRPC
//!    goes by HTTP/2 without TLS, with its trailers, and its clients are told errors in its own codes.
//! 4. Who is silent for long, sends more than is allowed, or takes most of its requests back is let go; a host may have limits
//!    of its own in the settings file, as there are no charts with settings. Every answer is counted for its application.
//! 5. A request that is nothing but a head, as most are, is handed on as bytes, and so is its response; all others, and what
//!    could be understood in two ways, go to hyper with what was read of them. Nothing is kept for a connection that is idle:
//!    bytes are read, and TLS is done, in buffers of the thread.
//! 6. Bodies stream both ways, in one task: whoever answers the client moves the bytes of the instance. A backend that is
//!    gone before it has read anything is replaced by another. Where nothing serves, a plain page says why.
//!
//! # A certificate
//!
//! 1. A host comes into the route table, and [`acme`] hears of it. What is wanted, what is kept and the time make a plan; nothing
//!    else is remembered, so a daemon that was away for long does what is due when it starts.
//! 2. A host that does not lead here is not ordered: an authority counts what fails. For the others an order is made, and
//!    kept with its key before anything is done for it; whoever starts again goes on with the order.
//! 3. The edge answers what the authority looks at, by a path on the port without TLS or in a handshake. For all names below
//!    the system domain a record is put into DNS instead, where there is a way to.
//! 4. The certificate is in the next handshake; connections that are open keep theirs. Failures are kept with their cause and
//!    the time of the next attempt; an authority that wants no more for now is left alone until then, and another is asked.
//!
//! # In a cluster
//!
//! The daemon is a pod, or runs beside the cluster with a kubeconfig. The walk is the same, in other places:
//!
//! 1. Detection by the embedded buildpacks runs no code of the application, so it is two processes beside the daemon. What it
//!    finds decides the images, and then one Job is made: *prepare* and *build* are init containers, *export* is the
//!    container. Volumes are empty folders of the pod; our own program is copied into one, so that it runs on any builder's
//!    image. Each container has its own specification, mounted from a Secret into this container alone; the one of the
//!    build has no credential in it.
//! 2. The Job goes on without a daemon. One that starts again finds it, reads its log on from where the log of the staging
//!    ends, and takes its image. Only a staging that is given up deletes its Job.
//! 3. The kubelet pulls from the daemon's registry under the name that images have everywhere, `127.0.0.1:30500`, which a
//!    NodePort answers, or a relay on each node where those do not answer on loopback, with a token for its namespace's
//!    repositories. The daemon's own image is there as well.
//! 4. A release is what the one Deployment of the application is at. The cluster rolls it, pod by pod; when it does not come
//!    up within the health gate's time, the Deployment goes back to the pod template of the release before.
//! 5. Where there is an ingress class, each application gets an Ingress, with a Secret for each host that has a certificate;
//!    where there is none, the daemon's own edge routes to the addresses of pods, and speaks TLS as on one machine. It sends
//!    clients to TLS where certificates of the public are asked for; whether a controller does is the controller's to decide.
//!    With `--tls-issuer` ingresses ask cert-manager, and the daemon nobody.
//! 6. On a bucket there may be several daemons. One leads and has a label, which the services select; the others are ready,
//!    answer 503 to whoever asks their API all the same, and refuse connections to where the registry and TLS would be. One
//!    that ends gives the Lease back when its last write is done, and answers 503 until nodes have learnt of the next one. One
//!    that falls silent loses the Lease after 15 s, and its label to the next. Only the one that leads orders certificates.
//!    Nothing in a pod is missed: what the next one does not find in the cluster or in the bucket it makes anew.
//!
//! # A look inside
//!
//! `apps exec` and `apps port-forward` are websockets of [`api`], which picks the instance; [`runtime`] gives it streams of
//! bytes. On one machine each visit is a process of its own, which enters the namespaces and groups of the instance, and gives up
//! the same as the instance did; connections are made on the network of the instance. In a cluster the API server does
//! both. A command of a built image gets its environment from the launcher, as the processes of the image do. On one machine it ends
//! with its client; in a cluster its input ends, or its terminal hangs up, as with kubectl.
//!
//! # What a sandbox reaches
//!
//! As root every build and every instance has a network of its own: out to the internet, and neither to this machine, nor
//! to each other, nor to link-local addresses. A rootless daemon cannot make one: there a sandbox has the network of the
//! machine, and reaches what any user's programs reach, listeners on loopback and link-local addresses included. The API and the
//! registry answer 401 to whoever has no credential. Files, processes, and (from Linux 6.12) abstract sockets of others
//! are out of reach in both cases. Without a cgroup memory is watched and processes are counted; the daemon says so.
//!
//! # Who may do what
//!
//! [`edge`] knows the address of a client, and hands it on with the request. [`api`] has one gate: it asks [`auth`] who that is, looks
//! into the table of routes how far it reaches, and writes the line of the audit log when the change has ended. The registry asks
//! the same guard, so that who guesses at one door waits at all. A route that is in no table is reached by no token.
//!
//! # State
//!
//! Everything durable is either a blob (content by digest, never changed) or an object of at most 256
//! KiB with a version for compare-and-swap, never a transaction over several, so that the Kubernetes API can
//! be a backend. In a cluster it is: an application is a custom resource that `kubectl get apps` shows, a namespace is the
//! Kubernetes namespace, all else is a Secret or ConfigMap of the daemon's namespace, and a Lease says which of several
//! daemons leads. Blobs are on disk, or in a bucket of S3 that belongs to one daemon; who needs a file of one gets a copy whose
//! hash was right. On disk a journal is in front of sled: every write is appended and synced before
//! it is acknowledged, and sled can always be rebuilt from it: at a start, and after a disk that was full.
//!
//! Work is level-triggered: [`apps`] compares what should run with what runs, [`staging`] starts over
//! what a crash interrupted, and [`daemon`] deletes what nothing refers to. Killing the daemon at any point
//! loses nothing that was acknowledged: a push whose staging began is built and deployed by the next daemon, without its
//! client. Applications run on, because a monitor process, not the daemon, is their parent.
//!
//! Memory that was needed once is not kept: every few seconds the daemon gives back what was freed, and pages of its program
//! that are not used.
//!
//! Archives of strangers are read in bounded memory: windows of decompressors, headers and directories have limits, which
//! is why zip and the block headers of xz have readers of our own here.

pub mod acme;
pub mod api;
pub mod apps;
pub mod auth;
pub mod base;
pub mod blob;
pub mod builders;
pub mod buildpacks;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dashboard;
pub mod edge;
pub mod launcher;
pub mod lifecycle;
pub mod model;
pub mod oci;
pub mod runtime;
pub mod source;
pub mod staging;
pub mod store;
pub mod telemetry;
