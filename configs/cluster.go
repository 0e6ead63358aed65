package configs

// checkCluster checks where the record is, and for whom.
func (m *mistakes) checkCluster(all ports) {
	const key, serve = "state.record", "cluster.serve_record"
	c := m.cfg
	if address := c.Cluster.ServeRecord; address != "" {
		m.checkPort(serve, address, all)
		switch {
		case c.State.Record != nil:
			m.report(serve, "this Postern keeps no record that it could serve: %s says where it is; remove one of them", key)
		case c.State.Path == "" || c.State.KeyFile == "":
			m.report(serve, "needs state.path, where the record is, and state.key_file, by which the other Posterns and this one know each other")
		}
	}
	r := c.State.Record
	if r == nil {
		return
	}
	switch {
	case c.State.Path == "":
		m.report(key, "needs state.path, where the rest of the state is kept")
	case r.Postgres != nil && r.Owner != "":
		m.report(key, "has both postgres and owner; remove one of them")
	case r.Postgres == nil && r.Owner == "" && !m.isUnreadable(key):
		m.report(key, "has neither postgres nor owner; write postgres: {url: ...} or owner: HOST:PORT")
	case r.Postgres != nil && r.Postgres.URL == "":
		m.report(key+".postgres.url", "missing; write it without a password, such as postgres://postern@db.example.org/postern")
	case r.Owner != "" && c.State.KeyFile == "":
		m.report(key+".owner", "needs state.key_file, the same as the owner's: by it the two know each other")
	case r.Owner != "":
		if host, port, err := splitAddress(r.Owner); err != nil || host == "" || port == 0 {
			m.report(key+".owner", "%s is not a host and a port; write cluster.serve_record of the Postern that keeps the record, such as 10.0.0.11:7993", quote(r.Owner))
		}
	}
}
