package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// One authority for all; those who may act on the cluster get a kubeconfig each.
type authority struct {
	folder, server string
	certificate    *x509.Certificate
	key            crypto.Signer
	pem            []byte
}

const serviceAddress = "10.96.0.1"

// Writes ca, apiserver and service-account keys as PEM, and NAME.kubeconfig of each part and of the administrator.
func certificates(folder, node, address string) error {
	ca, err := newAuthority(folder, "https://"+net.JoinHostPort(address, "6443"))
	if err != nil {
		return err
	}
	server := x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		IPAddresses: []net.IP{net.ParseIP(serviceAddress), net.ParseIP(address), net.IPv4(127, 0, 0, 1)},
		DNSNames: []string{
			"localhost", node, "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local",
		},
	}
	if err := ca.issueFiles("apiserver", server); err != nil {
		return err
	}
	kubelets := x509.Certificate{Subject: subject("kube-apiserver", "system:masters")}
	if err := ca.issueFiles("apiserver-kubelet", kubelets); err != nil {
		return err
	}
	if err := ca.writeServiceAccountKeys(); err != nil {
		return err
	}
	for name, who := range map[string]pkix.Name{
		"admin":                   subject("admin", "system:masters"),
		"kube-controller-manager": subject("system:kube-controller-manager", ""),
		"kube-scheduler":          subject("system:kube-scheduler", ""),
		"kube-proxy":              subject("system:kube-proxy", ""),
		"kubelet":                 subject("system:node:"+node, "system:nodes"),
	} {
		if err := ca.issueKubeconfig(name, who); err != nil {
			return err
		}
	}
	return nil
}

func newAuthority(folder, server string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := lasting(x509.Certificate{
		Subject:               pkix.Name{CommonName: "epiniod-test"},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	})
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	ca := &authority{folder, server, certificate, key, block("CERTIFICATE", der)}
	private, err := privateKey(key)
	if err != nil {
		return nil, err
	}
	return ca, firstError(ca.write("ca.crt", ca.pem), ca.write("ca.key", private))
}

func (ca *authority) issue(template x509.Certificate) (certificate, private []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, lasting(template), ca.certificate, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	private, err = privateKey(key)
	return block("CERTIFICATE", der), private, err
}

func (ca *authority) issueFiles(name string, template x509.Certificate) error {
	certificate, private, err := ca.issue(template)
	return firstError(err, ca.write(name+".crt", certificate), ca.write(name+".key", private))
}

func (ca *authority) issueKubeconfig(name string, who pkix.Name) error {
	certificate, private, err := ca.issue(x509.Certificate{Subject: who})
	text := fmt.Sprintf(kubeconfig, base64.StdEncoding.EncodeToString(ca.pem), ca.server,
		base64.StdEncoding.EncodeToString(certificate), base64.StdEncoding.EncodeToString(private))
	return firstError(err, ca.write(name+".kubeconfig", []byte(text)))
}

func (ca *authority) writeServiceAccountKeys() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := privateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	return firstError(err, ca.write("service-account.key", private),
		ca.write("service-account.pub", block("PUBLIC KEY", public)))
}

func (ca *authority) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(ca.folder, name), content, 0o600)
}

func lasting(template x509.Certificate) *x509.Certificate {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	return &template
}

func subject(name, organization string) pkix.Name {
	if organization == "" {
		return pkix.Name{CommonName: name}
	}
	return pkix.Name{CommonName: name, Organization: []string{organization}}
}

func privateKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return block("PRIVATE KEY", der), err
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func firstError(errors ...error) error {
	for _, err := range errors {
		if err != nil {
			return err
		}
	}
	return nil
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters:
- name: test
  cluster:
    certificate-authority-data: %s
    server: %s
users:
- name: test
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: test
  context:
    cluster: test
    user: test
current-context: test
`
